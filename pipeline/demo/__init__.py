"""The made-up world of `teachonce demo` and the two small models that were trained on it.

The room draws labelled images and unpacks the shipped models. Only the stage `demo` and the tests import it.

May import: core.
Begin with: `world` (the images), then `models`.
"""
