"""A run seen and steered from outside: who computes how fast, and the request to stop after the chunks under way.

The room keeps two small files beside a store: what is known of the workers, and what another terminal asks for. It
knows neither rows nor Dask; whoever writes a store tells it who delivered what.

May import: core, objects.
Begin with: `board` (what is known of each worker), then `stop`.
"""
