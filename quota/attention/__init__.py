"""What attention reads: quota's attention function, masks, what is done to keys, and the packed KV cache."""

from quota.attention.cache import QuantizedLayer, adopt, new_layer
from quota.attention.function import deploy, observe
from quota.attention.hook import CacheHook, attach_cache
from quota.attention.keys import KeyTransform
from quota.attention.observation import Observation
from quota.attention.slots import SlotLayer
from quota.attention.tower import TowerHook, attach_tower

__all__ = [
    "CacheHook",
    "KeyTransform",
    "Observation",
    "QuantizedLayer",
    "SlotLayer",
    "TowerHook",
    "adopt",
    "attach_cache",
    "attach_tower",
    "deploy",
    "new_layer",
    "observe",
]
