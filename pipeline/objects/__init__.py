"""Objects under keys, in a folder of this machine or in a bucket of an object store, through one seam of few verbs.

It holds the verbs and what they promise, their implementation for a folder and for a bucket, the clients of object
stores with their credentials, the patience with a server that does not answer, and the words for what a server refuses.

May import: core.
Begin with: `seam` (the verbs), then `bucket` (what a lost answer means).
"""
