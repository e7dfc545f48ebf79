"""model=gpt_zloss: a GPT whose logits stay small."""

from typing import Literal

from dml_runner.schema.base import NotNegative
from dml_runner.schema.model import Gpt


class ZLossGpt(Gpt):
    """A GPT whose logits stay small (z-loss; Chowdhery et al. 2022, section 5)."""

    name: Literal["gpt_zloss"]
    z: NotNegative = 1e-4
    """Weight of the squared logarithm of the softmax's denominator."""


def build(words, data):
    from dml_runner.models import gpt

    class Model(gpt.Gpt):
        def loss(self, output, batch):
            total, weight = super().loss(output, batch)
            penalty = output.float().logsumexp(-1)[batch["targets"] >= 0].square().sum()
            return (total + words.z * penalty if self.training else total), weight

    return Model(words, gpt.vocabulary_of(words.vocab_size, data))
