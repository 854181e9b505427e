"""A job and a cluster's profile → files that another program runs it by: KubeRay, Slurm, systemd, cron.

parts.py     what all of them need: where a job's folders lie, what its nodes have, names and values that are safe anywhere
kuberay.py   RayJob, RayCluster, RayCronJob, CronJob
slurm.py     a batch script
systemd.py   a service, and a timer where the job has a schedule
cron.py      a line of a crontab
render.py    target → files, shown or written
"""
