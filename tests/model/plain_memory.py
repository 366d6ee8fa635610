"""The MemoryBank written down frame by frame, as lists and in float64: what the batched one must equal.

Axis letters: T frames, n stored frames, W window length, H width.
"""

import math

import numpy as np

from mem0_jax.memory.bank import MemoryConfig


class PlainMemory:
    """One lane. The flags make it deliberately wrong.

    Args:
        params: the subtree `memory` of Mem-0's parameters.
        config: sizes and rules.
        chained: the anchor branch reads the window branch's output.
        rank_after_norm: the rank embedding joins after the shared norm.
        stores_fused: the window stores the window branch's output.
        anchors_newest: the anchor is the newest frame.
    """

    def __init__(
        self,
        params,
        config: MemoryConfig,
        *,
        chained=False,
        rank_after_norm=False,
        stores_fused=False,
        anchors_newest=False,
    ):
        self.params, self.config = params, config
        self.chained, self.rank_after_norm = chained, rank_after_norm
        self.stores_fused, self.anchors_newest = stores_fused, anchors_newest
        self.episode = None
        self.clear()

    def clear(self):
        self.window: list[np.ndarray] = []
        self.anchor = np.zeros(0)  # set with the first stored frame
        self.ends = 0

    def run(self, x, episode, end):
        """x [T, H], episode and end [T] -> window and anchor outputs [T, H], attention by rank [T, W]."""
        frames = [self.frame(np.asarray(q, np.float64), int(e), int(s)) for q, e, s in zip(x, episode, end)]
        return tuple(np.stack(values) for values in zip(*frames))

    def frame(self, q, episode, end):
        if episode != self.episode:
            self.clear()
        self.episode = episode
        window, anchor, attention = self.read(q)
        self.window = [*self.window, window if self.stores_fused else q][-self.config.window_size :]
        if not self.anchor.size or self.anchors_newest:
            self.anchor = q
        self.ends += end > 0
        if self.config.memory_accumulation and self.ends >= self.config.memory_accumulation:
            self.clear()
        return window, anchor, attention

    def read(self, q):
        attention = np.zeros(self.config.window_size)
        if not self.window:
            return q, q, attention
        newest_first = np.stack(self.window[::-1])
        ranks = np.stack([self.rank_embedding(rank) for rank in range(1, len(self.window) + 1)])
        if self.rank_after_norm:
            stored = self.norm("norm1", newest_first) + ranks
        else:
            stored = self.norm("norm1", newest_first + ranks)
        change, weights = self.attend("cross_attn1", self.norm("norm1", q), stored)
        attention[: len(weights)] = weights
        window = q + change
        query = window if self.chained else q
        change, _ = self.attend("cross_attn2", self.norm("norm2", query), self.norm("norm2", self.anchor[None]))
        return window, query + change, attention

    def rank_embedding(self, rank):
        half = len(self.leaf("rank_linear_1/kernel")) // 2
        angle = [rank * math.exp(-math.log(30.0) * i / half) for i in range(half)]
        hidden = self.linear("rank_linear_1", np.concatenate([np.cos(angle), np.sin(angle)]))
        return self.linear("rank_linear_2", hidden / (1 + np.exp(-hidden)))

    def attend(self, name, query, stored):
        """Multi-head attention of one query [H] to [n, H]: output [H] and weights [n], their mean over heads."""
        heads = self.config.num_heads
        q = self.linear(f"{name}/q", query).reshape(heads, -1)
        k, v = (self.linear(f"{name}/{part}", stored).reshape(len(stored), heads, -1) for part in "kv")
        logits = np.einsum("hd,nhd->hn", q, k) / math.sqrt(q.shape[-1])
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return self.linear(f"{name}/out", np.einsum("hn,nhd->hd", weights, v).ravel()), weights.mean(0)

    def norm(self, name, x):
        centred = x - x.mean(-1, keepdims=True)
        normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return normed * self.leaf(f"{name}/scale") + self.leaf(f"{name}/bias")

    def linear(self, name, x):
        return x @ self.leaf(f"{name}/kernel") + self.leaf(f"{name}/bias")

    def leaf(self, path):
        node = self.params
        for key in path.split("/"):
            node = node[key]
        return np.asarray(node, np.float64)
