"""Pictures and instructions to an EVO1's arrays. Axis letters: A action width, S tokens of a prompt."""

import numpy as np
from tokenizers import Tokenizer

from mem0_jax.backbones.internvl3 import processor
from mem0_jax.errors import UserError
from mem0_jax.policies.evo1.config import EVO1Config
from mem0_jax.policies.inputs import Inputs


class Processor(processor.Processor):
    """The backbone's, which knows the robot and what the head attends to: see `mem0_jax.family.PolicyFamily.processor`.

    Raises:
        UserError: the mode needs prompts of another length.
    """

    def __init__(self, tokenizer: Tokenizer, config: EVO1Config, inputs: Inputs):
        self._config = config
        self._real = np.arange(config.head.action_dim) < len(inputs.robot.action.names)
        if config.mode == "eager" and inputs.max_length != config.padded:
            raise UserError(f"max_length is {inputs.max_length}; in the mode 'eager' it must be {config.padded}")
        views, whole = len(inputs.cameras), config.mode != "masked"
        super().__init__(tokenizer, config.backbone, config.views, views, inputs.max_length, whole)

    def _tokenize(self, text: str) -> dict[str, np.ndarray]:
        """The backbone's arrays, `real` bool [A], numbers of an action that the robot has, and `copies` int32 [S], how
        many tokens of the context each stands for."""
        prompt = super()._tokenize(text)
        copies, length = prompt["visible"].astype(np.int32), int(prompt["attention_mask"].sum())
        if self._config.mode == "eager":
            copies, length = np.ones_like(copies), len(copies)
        if self._config.mode == "fa2":
            copies[:length] = 1
            if length < self._config.padded:  # hidden and alike, padding is one and the same vector everywhere
                if length == len(copies):
                    raise UserError(f"max_length {length} leaves no room for padding: set it to {length + 1} or more")
                copies[length] = self._config.padded - length
                length += 1
        return prompt | {"real": self._real, "copies": copies, "attention_mask": np.arange(len(copies)) < length}
