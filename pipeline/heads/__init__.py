"""Heads on features: small trained parts behind the towers, with which a CLIP classifies.

A head changes class vectors, image features or logits, never a tower. It knows the classes that it was trained for by
their names; all others it leaves as they are. The room does not train, and loads no models.

May import: no other room.
Begin with: `kinds` (what there is, and what is written down of a head), then `verbs` (what a head does), `vectors`
(heads that are class vectors), `adapters` (heads on images and on logits) and `heads` (all of them).
"""
