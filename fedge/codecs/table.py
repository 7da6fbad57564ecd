"""Which codecs are built, and where: in the order in which a chain may hold them.

Nothing is imported here. After a change run ``python -m fedge.methods.generate``.
"""

# key -> 'module:Class'
BUILT: dict[str, str] = {
    "svd": "fedge.codecs.svd:SVD",
    "powersgd": "fedge.codecs.powersgd:PowerSGD",
    "topk": "fedge.codecs.topk:TopK",
    "randomk": "fedge.codecs.randomk:RandomK",
    "fp16": "fedge.codecs.half:Fp16",
    "bf16": "fedge.codecs.half:Bf16",
    "minifloat": "fedge.codecs.minifloat:MiniFloat",
    "int8": "fedge.codecs.int8:Int8",
    "int4": "fedge.codecs.int4:Int4",
    "qsgd": "fedge.codecs.qsgd:QSGD",
    "nnadq": "fedge.codecs.nnadq:NNADQ",
    "sign": "fedge.codecs.sign:Sign",
    "zsign": "fedge.codecs.zsign:ZSign",
    "ternary": "fedge.codecs.ternary:Ternary",
    "mask": "fedge.codecs.mask:Mask",
    "zstd": "fedge.codecs.zstd:Zstd",
}
