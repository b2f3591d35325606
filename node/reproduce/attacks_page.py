"""The words around the figures of ``node/reproduce/attacks.py``."""

INTRODUCTION = """\
# Table I again: the attacks, run

What the paper's first table lists, tried: three ways of getting patients' data out of what federated learning shows. The
attacker is a strong one: it knows the model, the hyperparameters, how many images are in an update, and their labels.
What it *sees* is what the tree decides, so each attack is run against what each place of the tree sees.

| who | sees |
| --- | --- |
| a server of plain federated learning | each hospital's update |
| here: a parent in the tree, the network | ciphertexts: nothing to run an attack on |
| here: the key holder, and everyone after the round | the total of all others (of n hospitals, n - 1 less one's own) |
| here: a coalition of all but one; the key holder with the parent of a leaf | one hospital's update |

![What two attacks recover from each view](attacks.svg)
"""

NOTES = """\
## What this says

- **An update is an image.** Of one step on one image, every attack returns it, and the rounding to integers that the
  tree does is no protection: encryption is. This is what a server of plain federated learning holds.
- **A total protects by number, not by principle.** What is seen is the mean gradient of all images of all others.
  With one image at each of four hospitals they still come out in outline; with eight images each hardly any. Taking one's
  own update away gives the attacker a smaller mean, so three hospitals are the fewest that hide anybody, and
  `min_hidden` should be larger where hospitals take single steps on few patients. Real updates of many steps on hundreds
  of patients are far beyond what these attacks were shown to invert; that is experience, and no proof.
- **Noise for privacy is a proof.** Noise of a hundredth of an update's length for each value ends the attacks on images
  here; DP-SGD's sigma of 1 is a hundred times that.
- **The final model is published**, whatever is encrypted. A model that was trained until it knows its patients tells who they
  are; one that many hospitals trained together tells less, because it fits each of them less; DP-SGD bounds it. Ten
  parameters learnt from 800 patients tell nothing that could be measured.
- **A missing value** is guessed for strangers as well as for members: what is learnt is medicine (the values go together), not
  a member's secret, and always saying the likelier is as good. Encryption changes nothing of it, and should not.

Attacks get better; none of this is an upper bound but the one that DP gives. The attacks of malicious members on the protocol
itself are in [inner-attacks.md](inner-attacks.md) and [SECURITY.md](../../SECURITY.md).
"""
