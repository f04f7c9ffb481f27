"""The made-up world of `teachonce demo` and the two small models that know it.

It draws labelled images and unpacks the shipped models. Nobody but the stage `demo` and the tests enter this room.

May import: core.
Begin with: `world` (the images), then `models`.
"""
