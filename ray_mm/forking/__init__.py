"""Processes of a private Ray, forked from one that has imported what they need.

Ray starts a Python for each of its tasks and actors, and each imports Ray Data, Ray Train and PyTorch anew: seconds of a core, a
dozen times in a training, before the first step. On a machine of one's own they are forked instead.

start.py      the process that starts Ray → the server, and an executable that Ray takes for Python
launcher.py   what that executable does: it asks the server for a process and stands for it
server.py     imports, then forks

Where anything of it fails, Ray's process is started in the usual way.
"""
