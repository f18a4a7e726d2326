"""What went wrong in a run, from its curves, samples, labels and data: the doctor's checks.

One file for each subject; every check is a pure function of the run's records. They are in this layer because the
report shows them too; `wukong doctor` (`studies/doctor`) prints them, the studio shows them beside a run.
"""
