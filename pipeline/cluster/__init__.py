"""Where tasks run: worker processes on this machine, a Dask scheduler that runs already, batch jobs,
Kubernetes.

The room starts workers, keeps them busy within a window of tasks, and survives their loss. It does not know what a task
does.

May import: core, watching, batch.
Begin with: `description` (what a user asks for), then `client` and `task_window`.
"""
