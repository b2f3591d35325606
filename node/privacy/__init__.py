"""Differential privacy, of patients and of hospitals.

Patients (``mode = "record"``): ``dpsgd`` trains by Opacus under the one ``accountant`` of a hospital.

Hospitals (``mode = "hospital"``): ``arrange`` makes of the study how each round is protected; ``protect`` clips,
rounds (``rounding``) and adds noise (``hospital``, drawn by ``discrete``); ``clipping`` moves the norm; ``account``
says what is spent, by ``gaussian``. None of these imports torch.
"""
