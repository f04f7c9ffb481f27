"""One file a command: its options, and the job that turns them into one request for the stage of the same name.

Nothing runs while the command line is parsed: a stage, and with it torch and zarr, is imported inside the job only.
"""
