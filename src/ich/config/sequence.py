"""The section sequence: the second stage."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from ich.config.section import Section, Seed, check_warmup, refuse_unused

# The kinds of second stage that read a key of the section sequence; what is not named here is the network's.
_READERS = {
    "seed": ("recurrent", "boosting"),
    "reach": ("boosting",),
    "rounds": ("boosting",),
    "tree_rate": ("boosting",),
}


class Sequence(Section):
    """The second stage, which reads the first one's predictions scan by scan."""

    # recurrent: a network over the scan; boosting: trees on the neighbors' scores; linear: a logistic regression on
    # the scan's scores, for few scans; blend: the weighted mean of all three.
    kind: Literal["recurrent", "boosting", "linear", "blend"] = "blend"
    # Input of the network: out-of-fold logits; or embeddings and logits of the fold's own model, by
    # scripts/extract_features.py. The other kinds read out-of-fold logits either way.
    features: Literal["logits", "embeddings"] = "logits"
    # Shift each fold's out-of-fold logits by an offset a label, so that all folds' models have one mean probability
    # over the test set; after scripts/predict.py. A network that reads embeddings keeps those of its own model.
    align: bool = False
    # Seed of networks and trees.
    seed: Seed = 0
    # Networks for each fold, of consecutive seeds, whose logits are averaged.
    seeds: int = Field(1, ge=1)
    # The network: channels of each convolution.
    width: int = Field(32, ge=1)
    # The network: a convolution for each dilation.
    dilations: list[Annotated[int, Field(ge=1)]] = Field([1, 2, 4, 1])
    # The network: units of the GRU in each direction; 0 leaves it out.
    units: int = Field(16, ge=0)
    # The network: dropout.
    dropout: float = Field(0.3, ge=0, lt=1)
    # Epochs of the network.
    epochs: int = Field(30, ge=1)
    # Scans in a batch.
    batch_size: int = Field(16, ge=1)
    # Batches in an epoch of the network at most: of more scans, batches are larger.
    max_batches: int = Field(400, ge=1)
    # AdamW's learning rate, as in train.
    learning_rate: float = Field(3e-3, gt=0)
    # Length of the warm-up, in epochs.
    warmup_epochs: float = Field(2.0, ge=0)
    # AdamW's weight decay.
    weight_decay: float = Field(0.02, ge=0)
    # Largest norm of the gradient over all weights.
    clip_norm: float = Field(1.0, gt=0)
    # Weights of the six labels in the loss; null takes the metric's.
    label_weights: list[float] | None = None
    # Momentum of the exponential moving average of the weights, which is saved.
    ema: float = Field(0.99, ge=0, lt=1)
    # Largest number of consecutive slices of a scan in a training sample.
    window: int = Field(40, ge=1)
    # Standard deviation of the noise added to logits in training: to the scan's, to a label's in it, to each.
    noise: float = Field(0.3, ge=0)
    # Share of training samples whose five kinds of bleeding are permuted; 0 with embeddings, which know the kinds.
    shuffle_kinds: float = Field(0.2, ge=0, le=1, validate_default=True)
    # The trees: neighbors read on either side.
    reach: int = Field(7, ge=0)
    # The trees: their number.
    rounds: int = Field(250, ge=1)
    # The trees: learning rate.
    tree_rate: float = Field(0.05, gt=0)

    @property
    def kinds(self) -> list[str]:
        """What is trained: of a blend, all kinds."""
        return ["recurrent", "boosting", "linear"] if self.kind == "blend" else [self.kind]

    _warm_in_time = field_validator("warmup_epochs")(classmethod(check_warmup))

    @field_validator("*")
    @classmethod
    def _is_read(cls, value: Any, info: ValidationInfo) -> Any:
        kind, key = info.data.get("kind"), str(info.field_name)
        if key in ("kind", "features", "align") or kind in (None, "blend"):
            return value
        readers = _READERS.get(key, ("recurrent",))
        if kind in readers:
            return value
        return refuse_unused(
            cls, key, value, f"needs sequence.kind={' or '.join([*readers, 'blend'])}, not {kind}", info
        )

    @field_validator("features")
    @classmethod
    def _has_a_network(cls, value: str, info: ValidationInfo) -> str:
        if value == "embeddings" and info.data.get("kind") in ("boosting", "linear"):
            raise ValueError(
                "the network alone reads them; set sequence.kind to recurrent or blend, or sequence.features to logits"
            )
        return value

    @field_validator("align")
    @classmethod
    def _is_of_several_models(cls, value: bool, info: ValidationInfo) -> bool:
        if value and (info.data.get("kind"), info.data.get("features")) == ("recurrent", "embeddings"):
            raise ValueError("each network reads embeddings and logits of one model; set sequence.align=false")
        return value

    @field_validator("shuffle_kinds")
    @classmethod
    def _kinds_stay(cls, value: float, info: ValidationInfo) -> float:
        if value and info.data.get("features") == "embeddings":
            raise ValueError("embeddings know one kind of bleeding from another; set sequence.shuffle_kinds=0")
        return value
