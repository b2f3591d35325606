"""The record of a study for those who answer for data: made from signed ledgers, verified offline."""
