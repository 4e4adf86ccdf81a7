"""Virtual patients: a dosing regimen, a cohort, a trial."""
