"""All embedding fields of a model as one module (the e_r of the paper's §2.1).

B batch, F fields, E_f width of field f, N ids of all bags together.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.nn.modules.module import _EXTRA_STATE_KEY_SUFFIX as EXTRA_STATE

from adaftr_fast.files.json import dumps, from_json, loads
from adaftr_fast.nn.deferred import flush, held
from adaftr_fast.nn.embedding_fields import EmbeddingFields, Pooling
from adaftr_fast.nn.embedding_table import (
    EmbeddingTable,
    Field,
    HoldsTable,
    TableWeight,
    draw,
    initial_rng,
    parameter_names,
    split_tables,
)
from adaftr_fast.nn.module_list import ModuleList
from adaftr_fast.ops.embedding.lookup import embedding_and_squares
from adaftr_fast.ops.library import is_eager
from adaftr_fast.ops.norms import squared_norm


class FusedEmbedding(EmbeddingFields, HoldsTable):
    """Looks up the ids of F fields and concatenates their vectors in field order.

    B batch, F fields, E_f width of field f (E where all are equal), R rows of all fields together,
    N ids of all bags together.

    The fields of one width form one table. With one width there is one parameter, ``weight``
    [R, E], which holds the rows of one field after another. With several widths there is one
    parameter per width, in ascending order of width: ``tables[i].weight``. All are drawn from N(0,
    0.01²).

    Gradients of the parameters are sparse tensors that hold the rows of the batch, so
    torch.optim.SGD, Adagrad and SparseAdam work unchanged. They are coalesced, except on CUDA,
    where only the device knows which rows repeat. The optimizers of adaftr_fast.optim are faster
    and include Adam as on a dense table. docs/frameworks.md shows DistributedDataParallel,
    Lightning and Accelerate.

    ``state_dict()`` has an entry per parameter, under its name, and ``_extra_state`` [n], the bytes
    of a JSON text that lists the fields. ``load_state_dict()`` finds the rows of each field by its
    name, in whatever order and tables they were saved. It also takes the state of an nn.Embedding
    or nn.EmbeddingBag, where there is one width, that of an nn.ModuleList of one such module per
    field, or of an nn.ModuleDict by the names of the fields, and entries ``weight.<field name>``
    [rows, E_f], as the checkpoints of runs have them.

    Args:
        num_embeddings: number of rows of each field, F numbers >= 1.
        embedding_dim: width >= 1 of all fields, or F widths.
        field_names: F distinct names; "0", "1", ... by default.
        pooling: how the vectors of a multi-valued field are reduced, "mean", "sum" or "max", or F
            of these. Where some field has "max", each field is looked up by itself, and the vectors
            of its ids are stored.
        include_last_offset: whether the offsets of ``forward`` end with the number of ids;
            torch.nn.EmbeddingBag has False as its default.
        padding_idx: an id of all fields, or F ids or None, as in torch.nn: the id's row starts as
            zeros, gets no gradient, and does not count in bags. A negative number counts from the
            end of the field. A padding row that is looked up is in the sparse gradient with zeros,
            so an optimizer's weight decay reaches it.
        on_bad_id: "raise", or "oov" to look up row 0 of the field in place of an id that is out of
            range and to count it in ``oov_counts`` [F].
        sparse: whether the gradients of the parameters are sparse. A dense one has the size of its
            table, which takes a pass over the table in each backward. The optimizers of
            adaftr_fast.optim update the rows of a dense one that are not zeros. A weight that is computed
            from other tensors, as by torch.nn.utils.parametrizations.weight_norm, gets a dense one
            in any case. ``torch.compile`` of a program that trains runs look-ups with sparse
            gradients eagerly, between two graphs; fullgraph=True takes ``sparse=False``.
        device: device of the parameters.
        dtype: dtype of the parameters: float32, float64, bfloat16 or float16; torch's default dtype
            if None. Arithmetic on half-precision tables, and the state of the adaftr_fast.optim
            optimizers, is in float32.

    Attributes:
        widths: F widths.
        embedding_dim: E, or ``widths`` where they differ.
        by_width: the tables, in the order of ``table_weights()``.
        oov_counts: int64 [F], ids replaced so far under on_bad_id="oov".
        initial_rng: state of the random generator before the tables were drawn; None unless made
            within ``tables_elsewhere``.

    Raises:
        TypeError: num_embeddings is a single number.
        ValueError: there is no field, a field without rows, a width below 1, another number of
            widths than fields, a repeated or missing name, a padding_idx out of range, or an
            unknown option.
    """

    tables: ModuleList[TableWeight]

    def __init__(
        self,
        num_embeddings: Sequence[int],
        embedding_dim: int | Sequence[int],
        *,
        field_names: Sequence[str] | None = None,
        pooling: Pooling | Sequence[Pooling] = "mean",
        include_last_offset: bool = True,
        padding_idx: int | Sequence[int | None] | None = None,
        on_bad_id: Literal["raise", "oov"] = "raise",
        sparse: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_embeddings,
            embedding_dim,
            field_names=field_names,
            pooling=pooling,
            include_last_offset=include_last_offset,
            padding_idx=padding_idx,
            on_bad_id=on_bad_id,
            device=device,
        )
        self.sparse = sparse
        self.initial_rng = initial_rng()
        if self._mixed:
            self.tables = ModuleList(
                TableWeight(table, sparse, device, dtype) for table in self.by_width
            )
        else:
            self.weight = self.by_width[0].new_weight(device, dtype)
        self.reset_parameters()
        _living[next(_numbers)] = self

    @classmethod
    def from_pretrained(
        cls,
        embeddings: Tensor | Sequence[Tensor] | Mapping[str, Tensor],
        freeze: bool = True,
        **options: Any,
    ) -> Self:
        """Returns a FusedEmbedding with copies of the rows in ``embeddings``.

        Args:
            embeddings: a tensor [rows, E_f] per field, or a mapping from field names to them. A
                tensor is one field.
            freeze: whether the parameters get no gradient, as in
                torch.nn.Embedding.from_pretrained.
            options: arguments of the constructor: field_names, pooling, include_last_offset,
                padding_idx, on_bad_id, sparse. The rows of ``padding_idx`` keep their values.

        Raises:
            TypeError: something is not a tensor, such as an nn.Embedding, whose weight is one.
            ValueError: a tensor is not floating point [rows, E_f], they differ in dtype or device,
                or field_names is given beside a mapping.
        """
        if isinstance(embeddings, Mapping):
            if options.get("field_names") is not None:
                raise ValueError(
                    "FusedEmbedding.from_pretrained: field_names must be absent where embeddings "
                    "is a mapping, whose "
                    f"keys are the names, got {options['field_names']}"
                )
            options["field_names"] = list(embeddings)
            embeddings = list(embeddings.values())
        tables = [embeddings] if isinstance(embeddings, Tensor | nn.Module) else list(embeddings)
        if others := [type(table).__name__ for table in tables if not isinstance(table, Tensor)]:
            raise TypeError(
                "FusedEmbedding.from_pretrained: embeddings must be tensors, such as the weight of "
                "an nn.Embedding, "
                f"got {others[0]}"
            )
        usable = all(table.dim() == 2 and table.is_floating_point() for table in tables)
        if not usable or len({(table.dtype, table.device) for table in tables}) != 1:
            got = [f"{table.dtype} {list(table.shape)} on {table.device}" for table in tables]
            raise ValueError(
                "FusedEmbedding.from_pretrained: embeddings must be floating point [rows, E_f] of "
                "one dtype and "
                f"device, got {got}"
            )
        rows, widths = zip(*(table.shape for table in tables), strict=True)
        made = cls(rows, widths, device=tables[0].device, dtype=tables[0].dtype, **options)
        for f, table in enumerate(tables):
            made.field_weight(f).copy_(table.detach())
        return made.requires_grad_(not freeze)

    def _owners(self) -> Sequence[FusedEmbedding | TableWeight]:
        """The modules whose ``weight`` and ``offsets`` are those of the tables in ``by_width``."""
        return [*self.tables] if self._mixed else [self]

    def forward(
        self, ids: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        if self._leaves_graph():
            return _eagerly(super().forward, ids, offsets, per_sample_weights)
        return super().forward(ids, offsets, per_sample_weights)

    forward.__doc__ = EmbeddingFields.forward.__doc__

    def look_up_field(self, name: str | int, ids: Tensor) -> Tensor:
        if self._leaves_graph():
            return _eagerly(super().look_up_field, name, ids)
        return super().look_up_field(name, ids)

    look_up_field.__doc__ = EmbeddingFields.look_up_field.__doc__

    def _leaves_graph(self) -> bool:
        """Returns whether torch.compile traces a look-up with a sparse gradient, which inductor does
        not support.
        """
        return (
            torch.compiler.is_dynamo_compiling()
            and not torch.compiler.is_exporting()
            and torch.is_grad_enabled()
            and any(
                owner._is_sparse(owner.weight) and owner.weight.requires_grad
                for owner in self._owners()
            )
        )

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.sparse else ", sparse=False")

    def with_squares(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Looks up ids [B, F], and computes the sum of the squares of the result, for a penalty on
        the looked-up rows.

        Where the CPU kernels apply, the gradient of the sum takes no memory of the size of the
        result.

        Returns:
            (the vectors [B, sum of E_f], the sum of their squares, 0-dim).

        Raises:
            IndexError, TypeError, ValueError: see ``forward``.
        """
        if not self._fuses_squares(ids):
            looked_up: Tensor = self(ids)
            return looked_up, squared_norm([looked_up])
        self._check_parallel(self.weight)
        try:
            with held(self.weight) as steps:
                missed = [] if steps is None else steps.tensors
                return embedding_and_squares(self.weight, ids, self.offsets, missed)
        except IndexError:
            self._check_ids(ids)
            raise

    def _fuses_squares(self, ids: Tensor) -> bool:
        """Returns whether one look-up in one float32 table on the CPU computes the result, in eager
        mode.
        """
        if (
            self._mixed
            or self.padding_idx is not None
            or self.on_bad_id != "raise"
            or not self._is_sparse(self.weight)
            or ids.dim() != 2
        ):
            return False
        if (
            self._forward_hooks
            or self._forward_pre_hooks
            or self._backward_hooks
            or self._backward_pre_hooks
        ):
            return False
        plain = len(self.num_embeddings) == ids.shape[1] and self.weight.dtype == torch.float32
        return plain and self.weight.device.type == "cpu" and is_eager()

    def table_weights(self) -> list[nn.Parameter]:
        """Returns the parameters, one per width."""
        return [owner.weight for owner in self._owners()]

    def reset_parameters(self) -> None:
        """Draws the parameters from N(0, 0.01²), and sets the rows of ``padding_idx`` to zeros."""
        for weight in self.table_weights():
            draw(weight)
        for f, row in enumerate(self.padding_idx or []):
            if row is not None:
                self.field_weight(f)[row] = 0

    def field_weight(self, name: str | int) -> Tensor:
        """Returns the current rows of one field, [rows, E_f], as a view without gradient.

        Raises:
            KeyError: there is no such field.
        """
        number, place = self._locate(self.field(name))
        return self.by_width[number].rows(self._owners()[number].weight, place)

    @torch.no_grad()
    def grow(self, name: str | int, rows: int) -> None:
        """Extends a field to ``rows`` rows; the new ones are drawn from N(0, 0.01²).

        The other rows keep their values and a pending gradient, and an adaftr_fast.optim optimizer
        keeps its state. Other optimizers must be made anew, since the field's table is a new
        parameter afterwards.

        Raises:
            KeyError: there is no such field.
            ValueError: the field has more rows already, or another FusedEmbedding shares the
                parameter.
        """
        f = self.field(name)
        more = rows - self.num_embeddings[f]
        if more < 0:
            raise ValueError(
                f"FusedEmbedding.grow: field {name!r} has {self.num_embeddings[f]} rows, got {rows}"
            )
        number, place = self._locate(f)
        owner = self._owners()[number]
        table = self.by_width[number]
        if any(
            each is owner.weight
            for other in living_embeddings()
            if other is not self
            for each in other.parameters()
        ):
            raise ValueError(
                f"FusedEmbedding.grow: the parameter of field {name!r} must be of this module "
                "alone, but another "
                "FusedEmbedding shares it and would keep the rows of before"
            )
        owner.weight = table.grow(owner.weight, place, more)
        self.num_embeddings[f] = rows
        self.offsets[f + 1 :] += more
        if owner is not self:
            owner.offsets[place + 1 :] += more

    def flush(self) -> None:
        """Makes every row current, where an optimizer defers steps; see adaftr_fast.optim.Adam."""
        for weight in self.table_weights():
            flush(weight)

    def train(self, mode: bool = True) -> Self:
        """As nn.Module.train; makes every row current on leaving training."""
        if not mode:
            self.flush()
        return super().train(mode)

    def state_names(self) -> list[str]:
        """Returns the names of the entries of ``state_dict()``."""
        return [*parameter_names(self.widths).values(), EXTRA_STATE]

    def _described(self) -> list[Field]:
        return [
            Field(*each)
            for each in zip(self.field_names, self.num_embeddings, self.widths, strict=True)
        ]

    def get_extra_state(self) -> Tensor:
        """Returns the fields for ``state_dict()``, as the bytes of a JSON text, float32 [n].

        safetensors takes tensors alone, and as float32 the bytes survive averages of states and
        casts to half types.
        """
        text = dumps(self._described())
        return torch.tensor(list(text.encode()), dtype=torch.float32, device="cpu")

    @torch.no_grad()
    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing: list[str],
        unexpected: list[str],
        errors: list[str],
    ) -> None:
        names = parameter_names(self.widths).values()
        try:
            saved = self._rows_of_others(state_dict, prefix)
        except ValueError as error:
            errors.append(f"{prefix}{EXTRA_STATE}: {error}")
            saved = None
        if saved is not None:
            rows = self._fitting_rows(saved, prefix, missing, unexpected, errors)
            for number, (owner, name) in enumerate(zip(self._owners(), names, strict=True)):
                # Loaded at once, so that there is one table more at a time.
                key = prefix + name
                whole = self._whole_table(number, rows)
                if whole is not None:
                    place = key.removesuffix("weight")
                    HoldsTable._load_from_state_dict(
                        owner, {key: whole}, place, local_metadata, False, [], [], errors
                    )
                    state_dict[key] = owner.weight.detach()
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing, unexpected, errors
        )
        loaded = [state_dict[prefix + name] for name in names if prefix + name in state_dict]
        if loaded and self.offsets.is_meta and local_metadata.get("assign_to_params_buffers"):
            self._remake_buffers(loaded[0].device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As nn.Module._apply, which ``to_empty()`` calls; the buffers leave the meta device with
        values.
        """
        was_meta = self.offsets.is_meta
        super()._apply(fn, recurse)
        if was_meta and not self.offsets.is_meta:
            self._remake_buffers(self.offsets.device)
        return self

    def _remake_buffers(self, device: torch.device) -> None:
        self._make_buffers(device)
        for owner, table in zip(self.tables if self._mixed else (), self.by_width):
            owner.make_buffers(table, device)

    def _rows_of_others(self, state_dict: dict[str, Any], prefix: str) -> dict[str, Tensor] | None:
        """Takes the rows of each field out of a state dict whose tables are not those of this
        module.

        Returns:
            The rows by the names of the fields; None if the tables are this module's, or those of
            torch.nn.

        Raises:
            ValueError: the description of the fields is damaged.
        """
        described = state_dict.pop(prefix + EXTRA_STATE, None)
        if described is None:
            if any(prefix + name in state_dict for name in self.state_names()):
                return None
            start = f"{prefix}weight."
            of_fields = [key for key in state_dict if key.startswith(start)]
            found = {key.removeprefix(start): state_dict.pop(key) for key in of_fields}
            return found or self._rows_of_modules(state_dict, prefix) or None
        fields = from_json(
            list[Field], loads(bytes(described.float().flatten().round().byte().tolist()).decode())
        )
        if fields == self._described():
            return None
        names = parameter_names(field.width for field in fields).values()
        tables = {
            name: state_dict.pop(prefix + name) for name in names if prefix + name in state_dict
        }
        return split_tables(fields, tables)

    def _rows_of_modules(self, state_dict: dict[str, Any], prefix: str) -> dict[str, Tensor]:
        """Takes the weights of a ModuleDict of torch.nn.Embedding modules by the names of the
        fields, or of a ModuleList of them, out of a state dict; returns them by the names.
        """
        for keys in (self.field_names, map(str, range(len(self.field_names)))):
            of_fields = {
                name: f"{prefix}{key}.weight"
                for name, key in zip(self.field_names, keys, strict=True)
            }
            found = {name: key for name, key in of_fields.items() if key in state_dict}
            if found:
                return {name: state_dict.pop(key) for name, key in found.items()}
        return {}

    def _fitting_rows(
        self,
        saved: Mapping[str, Tensor],
        prefix: str,
        missing: list[str],
        unexpected: list[str],
        errors: list[str],
    ) -> dict[str, Tensor]:
        """Returns the saved rows that fit the fields of this module, and notes what does not."""
        fitting = {}
        for field in self._described():
            key = f"{prefix}weight.{field.name}"
            size = [field.rows, field.width]
            if field.name not in saved:
                missing.append(key)
            elif list(saved[field.name].shape) == size:
                fitting[field.name] = saved[field.name]
            else:
                errors.append(
                    f"size mismatch for {key}: {list(saved[field.name].shape)} in the checkpoint, "
                    f"{size} here"
                )
        unexpected.extend(
            f"{prefix}weight.{name}" for name in saved if name not in self.field_names
        )
        return fitting

    def _whole_table(self, number: int, rows: Mapping[str, Tensor]) -> Tensor | None:
        """Returns one table of this module, [R, E], whose fields have the given rows, or else their
        own.

        None where some are given and some on the meta device.
        """
        names = self.by_width[number].field_names
        given = [rows[name] for name in names if name in rows]
        if not given:
            return self.table_weights()[number].detach()
        parts = [rows[name] if name in rows else self.field_weight(name) for name in names]
        if len({part.is_meta for part in parts}) > 1:
            return None
        return torch.cat([part.to(given[0].device) for part in parts])

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        _living[next(_numbers)] = self


@_disable_dynamo
def _eagerly(look_up: Callable[..., Tensor], *arguments: Any) -> Tensor:
    return look_up(*arguments)


# What torch.compiler.disable(reason=...) sets, without importing the compiler until it is needed.
_eagerly.__dict__.update(
    _torchdynamo_disable=True,
    _torchdynamo_disable_msg="FusedEmbedding: a sparse gradient cannot be computed in a graph, set "
    "sparse=False or fullgraph=False",
)

_living: weakref.WeakValueDictionary[int, FusedEmbedding] = weakref.WeakValueDictionary()
_numbers = itertools.count()


def living_embeddings() -> list[FusedEmbedding]:
    """Returns the FusedEmbedding modules that exist, in the order in which they were made."""
    return list(_living.values())


def tables_of(modules: Iterable[nn.Module]) -> dict[nn.Parameter, EmbeddingTable]:
    """Returns the tables of the FusedEmbedding modules in ``modules``, by their parameters.

    A parameter that several of them hold has the table of the first.
    """
    found: dict[nn.Parameter, EmbeddingTable] = {}
    for module in (each for root in modules for each in root.modules()):
        if isinstance(module, FusedEmbedding):
            for weight, table in zip(module.table_weights(), module.by_width, strict=True):
                found.setdefault(weight, table)
    return found
