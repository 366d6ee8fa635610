"""Glance: a policy that an installed package brings, as unlike Mem-0 as the seams allow.

No memory, no backbone, no classifier; cameras of different sizes, more action numbers than state numbers, uniform
noise.
"""
