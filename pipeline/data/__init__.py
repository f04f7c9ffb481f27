"""What is taught on: manifests, class lists, the layouts of archives, and the images in them.

The room turns a manifest and a folder into an index of samples, reads images by byte range, and draws views of them. It
does not know which models look at the images.

May import: core, objects.
Begin with: `manifests` (what a data set must be), then `layouts` (how each layout of archives is scanned) and `index`.
"""
