"""Jobs on other machines, and at their times.

dashboard.py   a cluster's address → proof that it answers, and in the right version
submit.py      job → submission on the cluster, its status and its log
due.py         a schedule, what became of it so far, and now → the run that is due
schedule.py    job → its command at its times, until it is asked to end
manifests/     a job → what KubeRay, Slurm, systemd or cron run it by
leave.py       a node that will be gone → nothing runs on it any more
metrics.py     folders of runs → figures for Prometheus
"""
