"""Batch jobs between their submission and the first sign of their workers: what their queue says, and what to do then.

The room asks the programs of SLURM, PBS, LSF and SGE, replaces jobs that end too early, and cancels what a driver
leaves behind. It does not know how a job is described or submitted.

May import: no other room.
Begin with: `job_watch` (what is done), then `job_queues` and `other_queues` (who is asked).
"""
