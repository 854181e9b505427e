"""Jobs on other machines, and at their times.

dashboard.py   a cluster's profile → proof that it answers, wants a token, and runs the same versions
runtime.py     a cluster's profile → the command that a job is there, and the environment that it runs in
jobs.py        how the jobs of a cluster stand, their logs, and their end
placed.py      a job → the same, with the paths and the resources of a cluster
submit.py      job → submission on the cluster
errand.py      a module that runs on the head for some seconds → its answer
fetch.py       a submitted job's run → its files, here
packing.py     a run's folder → the small files of it, in one archive, and back
due.py         a schedule, what became of it so far, and now → the run that is due
schedule.py    job → its command at its times, until it is asked to end
manifests/     a job → what KubeRay, Slurm, systemd or cron run it by
metrics.py     folders of runs → figures for Prometheus

On the cluster:

attempts.py    a submitted job → its run, started again where it failed
answer.py      what a short job answers, through its log
sending.py     a run's folder → its small files, as an answer
examining.py   every node → what it has, sees and takes, as an answer
leave.py       a node that will be gone → nothing runs on it any more
"""
