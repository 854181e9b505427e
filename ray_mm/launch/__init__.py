"""Jobs on other machines.

dashboard.py   a cluster's address → proof that it answers, and in the right version
submit.py      job → submission on the cluster, its status and its log
"""
