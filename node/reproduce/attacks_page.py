"""The words around the figures of ``node/reproduce/attacks.py``."""

INTRODUCTION = """\
# Table I again: the attacks, run

What the paper's first table lists, tried: three ways of getting patients' data out of what federated learning shows.
The attacker is a strong one: it knows the model, the hyperparameters, how many images are in an update, and their
labels. What it *sees* is what the tree decides, so each attack is run against what each place of the tree sees.

| who | sees |
| --- | --- |
| a server of plain federated learning | each hospital's update |
| here: a parent in the tree, the network | ciphertexts: nothing to run an attack on |
| here: everyone after the round, the key holder too | the total; without one's own update it is that of n - 1 |
| here: all but one together; the key holder with the parent of a leaf | one hospital's update |

![What two attacks recover from each view](attacks.svg)
"""

NOTES = """\
## What this says

- **An update may be an image.** A linear model's update of one step on one image *is* that image; through a network
  with convolutions it is found by search. The rounding to integers that the tree does is no protection: encryption is.
  This is what a server of plain federated learning holds.
- **A total protects by number, not by principle.** What is seen is the mean gradient of all images of all others. With
  one image at each of four hospitals most can still be told apart; with eight each, few. Taking one's own update away
  leaves a smaller mean, so `min_hidden` should be larger where hospitals take single steps on few patients. Updates of
  many steps on hundreds of patients are far beyond what these attacks were shown to invert; that is experience, and no
  proof.
- **Noise for privacy is the proof.** How much is needed depends on the model: a linear one's image is still told apart
  under noise of 1 % of the update's length for each value; under DP-SGD's sigma of 1, a hundred times that, it is not.
- **The final model is published**, whatever is encrypted. A model that was trained until it knows its images tells who
  they are, a little; one that several hospitals trained together tells less, because it fits each of them less; under
  DP-SGD the bound is epsilon, and the price is accuracy. Ten parameters learnt from 800 patients tell nothing that
  could be measured.
- **A missing value** is named right for strangers about as often as for members, and hardly more often than by always
  saying the likelier: what is learnt is medicine (the values go together), not a member's secret. Encryption changes
  nothing of it, and should not.

Attacks get better; nothing here is an upper bound but what differential privacy gives. An attack that searches is as
good as its time, and these are short ones; an en dash is one that was not made. Attacks of malicious members on the
protocol itself are in [inner-attacks.md](inner-attacks.md) and [SECURITY.md](../../SECURITY.md).

BloodMNIST: Acevedo et al. 2020, Yang et al. 2023; CC BY 4.0.
"""
