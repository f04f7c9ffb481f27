"""How one writer at a time fills a store that lies in a bucket, where no file can be renamed, synced or locked.

It holds the lock of a store wherever the store lies, the proof that a server keeps conditions of writes, the claims by
which one of several deliveries of a chunk wins, and the files beside a store. It knows keys and bytes, and neither
arrays nor labels.

May import: core, objects.
Begin with: `claims` (why late writers harm nothing), then `bucket` (how a chunk gets into its place).
"""
