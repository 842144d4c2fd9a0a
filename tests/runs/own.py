"""Classes that tests train by name."""

from torch import nn

from adaftr_fast.models import Backbone, MultiTaskModel
from adaftr_fast.nn.mlp import Tower


class Net(Backbone):
    """One linear layer of ``options["width"]`` as the bottom that the tasks share."""

    def __init__(self, num_embeddings, task_names, config, field_names=None):
        super().__init__(num_embeddings, task_names, config, field_names)
        width = config.options.get("width", 4)
        self.bottom = nn.Linear(self.embedded_features, width)
        self.towers = nn.ModuleList(Tower(width, config.tower_hidden) for _ in task_names)

    def task_inputs(self, embedded):
        return [self.bottom(embedded)] * len(self.towers)


class Short(Net):
    def __init__(self, num_embeddings):
        """Takes too few arguments."""


class Abstract(MultiTaskModel):
    def __init__(self, num_embeddings, task_names, config, field_names):
        super().__init__(task_names)


class Refusing(Net):
    def __init__(self, num_embeddings, task_names, config, field_names=None):
        raise ValueError("options: expected a width, got none")
