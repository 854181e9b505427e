"""A trained model, ready to answer: from a checkpoint (torch) or from an artifact (onnxruntime). Without Ray.

A folder is an artifact if it holds ``artifact.json`` ({"format": "ray_mm.artifact", "version", "digest" of model.onnx,
"files": digests of all files, …}), ``model.onnx``, and ``model.json`` and ``preprocessor.json`` as a checkpoint has them.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from ray_mm.answers import Answers, Prediction
from ray_mm.checkpoint import (
    WEIGHTS_FILE,
    load_checkpoint,
    load_description,
    read_versioned,
    resolve_checkpoint,
    run_kind,
    verify_checkpoint,
)
from ray_mm.config.fields import has_streams
from ray_mm.config.model import ModelConfig
from ray_mm.config.tasks import ReconstructTask, labels_of
from ray_mm.data.collate import Collator
from ray_mm.data.decode import DecodeError, decoder_for
from ray_mm.data.decode.decoder import streams_decoder
from ray_mm.data.fields import Arrays, presence_name
from ray_mm.data.payload import member_bytes, stream_bytes
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.data.targets import in_own_unit, target_shape, target_sizes
from ray_mm.errors import CheckpointError, UsageError
from ray_mm.registered import on_this_machine
from ray_mm.storage import local_path, sha256_file

if TYPE_CHECKING:  # imported where a checkpoint is used: an artifact answers without torch
    import torch

    from ray_mm.models.multimodal import MultimodalModel

ARTIFACT_FILE = "artifact.json"
GRAPH_FILE = "model.onnx"
ARTIFACT_FORMAT_NAME = "ray_mm.artifact"
ARTIFACT_FORMAT = 1


class Predictor(abc.ABC):
    """A model and what turns samples into its input. Made by ``load_predictor``.

    Args:
        config: of the model.
        preprocessor: fields, tokenizers, statistics.
        size_bytes: of the weights, or of the graph with its weights, on disk.

    Attributes:
        input_fields: sorted.
        answers: what its output means.
        towers: of a retrieval, tower → its fields; None: it is none.
        reconstructed: of a reconstruction, the fields that it says again, sorted; None: it is none.
    """

    def __init__(self, config: ModelConfig, preprocessor: Preprocessor, size_bytes: int) -> None:
        self.config = config
        self.preprocessor = preprocessor
        self.size_bytes = size_bytes
        self.input_fields = sorted(config.fields)
        self.answers = Answers(config.task, preprocessor.fields, preprocessor.statistics, config.fields)
        self.towers = self.answers.towers
        self.reconstructed = config.task.fields_of(config.fields) if isinstance(config.task, ReconstructTask) else None
        self._labels = labels_of(config.task)
        # Not the label: a prediction has none, and its statistics are not an input's.
        inputs = preprocessor.only(config.fields)
        self._collator = Collator(inputs)
        specs = inputs.fields
        self._decoders = {name: decoder_for(name, inputs) for name in specs if not has_streams(specs[name])}
        self._of_streams = {name: streams_decoder(name, spec) for name, spec in specs.items() if has_streams(spec)}

    def outputs(
        self, batch: Mapping[str, npt.NDArray[Any]], subsets: Sequence[frozenset[str]] | None = None
    ) -> npt.NDArray[np.float32]:
        """The answers for a batch, for each subset of its fields.

        Args:
            batch: the arrays of the input fields, presence included (see ``data.fields``); other keys are ignored.
            subsets: sets of input fields that may be looked at. None: one entry, all of them.

        Returns:
            Probabilities float32 [S, B, C] of classes, values float32 [S, B] in the label's own unit, of a retrieval
            embeddings float32 [S, B, K, E] of length 1, K towers in the order of their names, or of a reconstruction the
            standardised targets of all its fields, float32 [S, B, N] (see ``data.targets``). Of several tasks these of each
            beside each other, float32 [S, B, N], see ``answers``.

        Raises:
            UsageError: a subset names what is no input field.
        """
        wanted = [frozenset(self.input_fields)] if subsets is None else list(subsets)
        for subset in wanted:
            if unknown := sorted(subset - set(self.input_fields)):
                raise UsageError(
                    f"subset {sorted(subset)}: {unknown[0]!r} is no input field; they are {', '.join(self.input_fields)}."
                )
        presence = [
            {name: np.asarray(batch[presence_name(name)], np.bool_) & (name in subset) for name in self.input_fields}
            for subset in wanted
        ]
        raw = self._run(batch, presence)
        return raw if self.reconstructed is not None else self.answers.of_output(raw)

    @abc.abstractmethod
    def _run(
        self, batch: Mapping[str, npt.NDArray[Any]], presence: Sequence[dict[str, npt.NDArray[np.bool_]]]
    ) -> npt.NDArray[np.float32]:
        """The model's raw output for each of several presences, [S, B, …]."""

    def predict(self, sample: Mapping[str, Any]) -> Prediction:
        """The answer for one sample.

        Args:
            sample: field → value. Bytes are a member as a shard holds it; a path (``Path``, or ``str`` except for a text)
                is a file with such bytes. Otherwise a text is a ``str``; an image uint8 [height, width, channels]; audio
                int16 or floats in −1 … 1, [frames] or [frames, channels], at the field's rate; series, points and vector
                arrays or nested lists; a series of several streams a mapping from
                member to any of these. What is missing, None or empty is absent. The label is ignored.

        Returns:
            The answer; where nothing is present, too: ``presence`` tells.

        Raises:
            UsageError: a field that the model does not have, or a value that can't be read.
        """
        if not isinstance(sample, Mapping):
            raise UsageError(
                f"predict takes one sample, a mapping from field to value, and found a {type(sample).__name__}; for several "
                "samples there is predict_many."
            )
        return self._predict([sample])[0]

    def predict_many(self, samples: Iterable[Mapping[str, Any]], batch_size: int = 64) -> Iterator[Prediction]:
        """The answers for many samples, in their order; no more than a batch of them is held at a time.

        Args:
            samples: each as for ``predict``.
            batch_size: samples per forward pass.

        Raises:
            UsageError: as ``predict``, with the number of the sample, from 0; when its batch is reached.
        """
        if isinstance(samples, (Mapping, str, bytes)) or batch_size < 1:
            raise UsageError("predict_many takes samples, such as a list of mappings, and a batch_size of at least 1.")
        left, start = iter(samples), 0
        while batch := list(islice(left, batch_size)):
            yield from self._predict(batch, start)
            start += len(batch)

    def _predict(self, samples: Sequence[Mapping[str, Any]], start: int | None = None) -> list[Prediction]:
        batch = self._collator.empty(len(samples))
        for row, sample in enumerate(samples):
            try:
                self._fill_row(batch, row, sample)
            except UsageError as error:
                if start is None:
                    raise
                raise UsageError(f"sample {start + row}: {error}") from None
        found = self.outputs(batch)[0]
        presence = [
            {name: bool(batch[presence_name(name)][row]) for name in self.input_fields} for row in range(len(samples))
        ]
        if self.reconstructed is not None:
            return [
                Prediction(None, None, there, reconstruction=self.reconstruction(row))
                for there, row in zip(presence, found, strict=True)
            ]
        return [self.answers.prediction(row, there) for there, row in zip(presence, found, strict=True)]

    def reconstruction(self, targets: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float32]]:
        """Of a model that reconstructs: targets [N], or what it answers, as field → values of its own shape and unit."""
        fields, statistics = self.preprocessor.fields, self.preprocessor.statistics
        names = self.reconstructed or ()
        parts = np.split(targets, np.cumsum(target_sizes(names, fields))[:-1])
        return {
            name: in_own_unit(part.reshape(target_shape(fields[name])), fields[name], statistics.get(name))
            for name, part in zip(names, parts, strict=True)
        }

    def _fill_row(self, batch: Arrays, row: int, sample: Mapping[str, Any]) -> None:
        if not isinstance(sample, Mapping):
            raise UsageError(f"expected a mapping from field to value, found a {type(sample).__name__}.")
        for name in sample:
            if name not in self.input_fields and name not in self._labels:
                raise UsageError(
                    f"{name}: the model has no such input field; its fields are {', '.join(self.input_fields)}."
                )
        for name in self.input_fields:
            self._fill(batch, row, name, sample.get(name))

    def _fill(self, batch: Arrays, row: int, name: str, value: Any) -> None:
        try:
            spec = self.preprocessor.fields[name]
            if has_streams(spec):
                payloads = {} if value is None else stream_bytes(spec, value)
                batch[presence_name(name)][row] = self._of_streams[name](payloads, batch, row)
                return
            payload = b"" if value is None else member_bytes(spec, value)
            if len(payload):
                batch[presence_name(name)][row] = self._decoders[name](payload, batch, row)
        except DecodeError as error:
            raise UsageError(f"{name}: the value can't be read: {error}.") from None


class TorchPredictor(Predictor):
    """Answers with the network itself.

    Args:
        model: in eval mode; moved to the device.
        config: what it was built from.
        preprocessor: what it was built from.
        size_bytes: of its weights on disk.
        device: such as ``cpu`` or ``cuda``.
    """

    def __init__(
        self,
        model: MultimodalModel,
        config: ModelConfig,
        preprocessor: Preprocessor,
        size_bytes: int,
        device: str = "cpu",
    ) -> None:
        import torch

        super().__init__(config, preprocessor, size_bytes)
        self.model = model.to(device).eval()
        self.device = torch.device(device)

    def _run(
        self, batch: Mapping[str, npt.NDArray[Any]], presence: Sequence[dict[str, npt.NDArray[np.bool_]]]
    ) -> npt.NDArray[np.float32]:
        import torch

        arrays = [array for names in self.model.arrays.values() for array in names]
        with torch.inference_mode():
            # Encoding is nearly all of the work, and does not depend on presence.
            encoded = self.model.encode({array: self._tensor(batch[array]) for array in arrays})
            raw = [
                self.model.fuse(encoded, {name: self._tensor(there[name]) for name in self.input_fields})
                for there in presence
            ]
            return cast("npt.NDArray[np.float32]", torch.stack(raw).float().cpu().numpy())

    def _tensor(self, array: npt.NDArray[Any]) -> torch.Tensor:
        import torch

        # Torch warns about arrays that it could not write to, such as views of Arrow's memory.
        return torch.from_numpy(array if array.flags.writeable else array.copy()).to(self.device)


class OnnxPredictor(Predictor):
    """Answers with an exported graph in onnxruntime, on the CPU.

    Args:
        graph: ``model.onnx``: inputs named as the arrays of a batch, one output.
        config: of the model.
        preprocessor: of the model.
        threads: that one call may use. None: as many as there are cores.
    """

    def __init__(
        self, graph: Path, config: ModelConfig, preprocessor: Preprocessor, threads: int | None = None
    ) -> None:
        super().__init__(config, preprocessor, graph.stat().st_size)
        try:
            import onnxruntime
        except ImportError:
            raise UsageError(
                f"{graph}: an artifact needs onnxruntime; install it with pip install 'ray_mm[onnx]'."
            ) from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
        try:
            self.session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no common class that is public
            raise CheckpointError(f"{graph}: onnxruntime can't load it ({str(error).splitlines()[0]}).") from None
        self._inputs = [entry.name for entry in self.session.get_inputs()]

    def _run(
        self, batch: Mapping[str, npt.NDArray[Any]], presence: Sequence[dict[str, npt.NDArray[np.bool_]]]
    ) -> npt.NDArray[np.float32]:
        raw = []
        for there in presence:
            arrays = {**batch, **{presence_name(name): array for name, array in there.items()}}
            raw.append(self.session.run(None, {name: np.ascontiguousarray(arrays[name]) for name in self._inputs})[0])
        return np.stack(raw)


def load_predictor(path: str | Path, *, device: str | None = None, threads: int | None = None) -> Predictor:
    """Loads a model for prediction.

    Args:
        path: a train run (its best checkpoint), a checkpoint folder, a compress run or an artifact folder; or the name of a
            model in a registry, such as ``registry:runs/registry#driving@champion``.
        device: of a checkpoint's network. None: a GPU if there is one. An artifact always runs on the CPU.
        threads: that an artifact may use. None: as many as there are cores. (Torch's number is one for the whole process:
            ``torch.set_num_threads``.)

    Raises:
        CheckpointError: nothing there that can be loaded.
    """
    path = on_this_machine(path)
    folder = _artifact_folder(path)
    if folder is not None:
        return _load_artifact(folder, threads)
    import torch

    checkpoint = load_checkpoint(path)
    return TorchPredictor(
        checkpoint.build(),
        checkpoint.config,
        checkpoint.preprocessor,
        (checkpoint.path / WEIGHTS_FILE).stat().st_size,
        device or ("cuda" if torch.cuda.is_available() else "cpu"),
    )


def model_folder(path: str | Path) -> Path:
    """The folder of the checkpoint or the artifact that ``load_predictor`` takes; the errors are its own, too."""
    path = on_this_machine(path)
    return _artifact_folder(path) or resolve_checkpoint(path)


def _artifact_folder(path: str | Path) -> Path | None:
    """The artifact folder that a path means, if it means one."""
    if "://" in str(path) and not str(path).startswith("file://"):
        return None
    root = local_path(path)
    if (root / ARTIFACT_FILE).is_file():
        return root
    if run_kind(root) != "compress":
        return None
    if (root / "artifact" / ARTIFACT_FILE).is_file():
        return root / "artifact"
    raise CheckpointError(f"{root}: the compress run has published no artifact; its result.json says why.")


def verified_model_folder(path: str | Path) -> Path:
    """As ``model_folder``, with every file's checksum looked at. Nothing is loaded.

    Raises:
        CheckpointError: nothing there, damaged, or of a newer format.
    """
    path = on_this_machine(path)
    folder = _artifact_folder(path)
    if folder is not None:
        _verify_artifact(folder)
        load_description(folder)
        return folder
    return verify_checkpoint(path)


def _load_artifact(folder: Path, threads: int | None) -> OnnxPredictor:
    _verify_artifact(folder)
    description = load_description(folder)
    return OnnxPredictor(folder / GRAPH_FILE, description.config, description.preprocessor, threads)


def _verify_artifact(folder: Path) -> None:
    content = read_versioned(folder / ARTIFACT_FILE, ARTIFACT_FORMAT_NAME, ARTIFACT_FORMAT)
    # All of it was judged together: another preprocessor beside the same graph is another model.
    for name, expected in {GRAPH_FILE: content.get("digest"), **_files(content)}.items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{file}: is missing; the artifact is not whole.")
        found = sha256_file(file)
        if found != expected:
            raise CheckpointError(
                f"{file}: its SHA-256 digest is {found[:16]}…, {ARTIFACT_FILE} says {str(expected)[:16]}…; the file was damaged "
                "or replaced after it was written. Copy it again, or compress again."
            )


def _files(artifact: dict[str, Any]) -> dict[str, Any]:
    """Name → SHA-256 of an artifact's files; of names in its own folder only."""
    files = artifact.get("files", {})
    return {Path(name).name: digest for name, digest in files.items()} if isinstance(files, dict) else {}
