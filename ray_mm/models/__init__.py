"""The network: a batch of arrays → one output per sample. Torch only; no Ray.

    layers.py      masks, attention, feed-forward and masked convolution: what several encoders share
    encoders/      one module per field type: arrays → tokens [B, T, D] and a mask [B, T]
    fusion/        one module per method: the tokens of all fields and their presence → [B, D]
    own.py         encoders and fusions of other packages
    heads.py       [B, D] → logits [B, C], values [B], or what a retrieval compares
    decoders.py    [B, D] → what the fields were like
    maps.py        tokens on a grid, and what all fields tell → logits [B, C, H, W]
    multimodal.py  puts them together: ``build_model``
    targets.py     arrays of fields → what is to be said again of them
    pairs.py       the losses of a retrieval: sides of a sample against those of all others
    losses.py      output and label → a loss per sample

No normalisation looks at other samples (GroupNorm and LayerNorm only), so that an output does not depend on how a global
batch is cut over workers. There is no branch on data, so that ``torch.export`` and ONNX take the model as it is.
"""
