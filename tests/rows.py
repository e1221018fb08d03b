"""Where each run of the source's later series stands: a point of the grammar, the function it must equal, its size.

    run: (name of a variant or of an equation of `EQUATIONS`, further fields)

Series 11 to 19, as far as a run differs in its block or its stack from those before it; not where it differs in a rate, a warm-up or the drift that
is punished. `LOGGED` holds what the source's logs count as learned. Many runs of the source also count parts that were built and never read: those
are left out, but for three whose difference is known.
"""
import references as R
import torch
from references import layer_norm

SHARED = dict(share="all", norm="rms", affine=False)            # series 11 and 12, and the first of 13
LATER = dict(unbiased=("qkv",))                                 # from series 16 on;
LAST = dict(unbiased=("qkv", "mlp.out"))                        # nor is there a bias at the end of an MLP
ZERO = dict(sink=True, sink_kind="fixed")                       # a zero vector before the tokens: a key with a logit of 0
GATED = ZERO | dict(carry="r", write="gate", gate="sink")
MIXED = GATED | dict(write="gate mix")


def x_of(w, r): return layer_norm(w, "norm1", r)
def zero(w, heads): return w | {"attn.sink": torch.zeros(heads, dtype=torch.float64)}
def both(w, x, heads, **kw): return torch.cat([x, R.A(w, x, heads, **kw)], -1)
def share(w, r, heads): return R.sink_share(w, x_of(w, r), heads)
def concat(w, r, heads): return R.M(w, both(w, x_of(w, r), heads, sink=True))
def mixed(g, r, u): return g * r + (1 - g) * u


EQUATIONS = {  # an equation that has no name: its fields, and the loops
    "2 A° ⊙ M": (dict(values=False, mlp_in="x", update="a*m", carry="0", attn_scale=2.), lambda w, r, h: 2 * R.A0(w, x_of(w, r), x_of(w, r), h) * R.M(w, x_of(w, r))),
    "S ⊙ M": (dict(values=False, weights="sigmoid", mlp_in="x", update="a*m", carry="0"), lambda w, r, h: R.A0(w, x_of(w, r), x_of(w, r), h, weigh=R.each_alone) * R.M(w, x_of(w, r))),
    "A masked ⊙ M": (dict(own="mask", mlp_in="x", update="a*m", carry="r"), lambda w, r, h: r + R.A(w, x_of(w, r), h, before=R.mask_own) * R.M(w, x_of(w, r))),
    "A° deleted ⊙ M": (dict(values=False, own="delete", mlp_in="x", update="a*m", carry="r"), lambda w, r, h: r + R.A0(w, x_of(w, r), x_of(w, r), h, after=R.delete_own) * R.M(w, x_of(w, r))),
    "A deleted ⊙ M": (dict(own="delete", mlp_in="x", update="a*m", carry="r"), lambda w, r, h: r + R.A(w, x_of(w, r), h, after=R.delete_own) * R.M(w, x_of(w, r))),
    "y + E": (ZERO | dict(mlp_in="N(x+a)", update="a+m", carry="x"), lambda w, r, h: R.executor_normed_skip(zero(w, h), r, h)),
    "r + E, sink": (ZERO | dict(mlp_in="N(x+a)", update="a+m", carry="r"), lambda w, r, h: r - x_of(w, r) + R.executor_normed_skip(zero(w, h), r, h)),
    "g y + E": (GATED | dict(mlp_in="N(x+a)", update="a+m", carry="x"), lambda w, r, h: R.sink_gate_normed_skip(zero(w, h), r, h)),
    "g r + E": (GATED | dict(mlp_in="N(x+a)", update="a+m"), lambda w, r, h: R.sink_gate(zero(w, h), r, h)),
    "Σg r + (1 − Σg) E": (MIXED | dict(mlp_in="N(x+a)", update="a+m", gate="sink sum"), lambda w, r, h: R.sink_gate_sum_mix(zero(w, h), r, h)),
    "g y + M[N y; A]": (GATED | dict(mlp_in="[N(x);a]", carry="x"), lambda w, r, h: share(zero(w, h), r, h) * x_of(w, r) + R.Ec(zero(w, h), x_of(w, r), h)),
    "g y + M[y; A]": (GATED | dict(mlp_in="[x;a]", carry="x"), lambda w, r, h: share(zero(w, h), r, h) * x_of(w, r) + concat(zero(w, h), r, h)),
    "g r + M[y; A]": (GATED | dict(mlp_in="[x;a]"), lambda w, r, h: share(zero(w, h), r, h) * r + concat(zero(w, h), r, h)),
    "g r + (1 − g) M[y; A]": (MIXED | dict(mlp_in="[x;a]"), lambda w, r, h: mixed(share(zero(w, h), r, h), r, concat(zero(w, h), r, h))),
    "g y + (1 − g) M[y; A]": (MIXED | dict(mlp_in="[x;a]", carry="x"), lambda w, r, h: mixed(share(zero(w, h), r, h), x_of(w, r), concat(zero(w, h), r, h))),
    "g r + (1 − g) M[y; N A]": (MIXED | dict(mlp_in="[x;N(a)]"), lambda w, r, h: mixed(share(zero(w, h), r, h), r, R.M(w, torch.cat([x_of(w, r), layer_norm(w, "norm2", R.A(zero(w, h), x_of(w, r), h, sink=True))], -1)))),
    "g r + (1 − g) N M[y; A]": (MIXED | dict(mlp_in="[x;a]", update="N(m)"), lambda w, r, h: mixed(share(zero(w, h), r, h), r, layer_norm(w, "norm3", concat(zero(w, h), r, h)))),
    "Σg r + (1 − Σg) M[y; A]": (MIXED | dict(mlp_in="[x;a]", gate="sink sum"), lambda w, r, h: mixed(h * share(zero(w, h), r, h), r, concat(zero(w, h), r, h))),
    "two matrices of A": (dict(mlp_in="x", update="two matrices", carry="r"), lambda w, r, h: two_matrices_of(w, r, R.A(w, x_of(w, r), h))),
}


def two_matrices_of(w, r, a):
    "As `references.two_matrices`, of an attention that keeps its own value."
    emitted, k = R.M(w, x_of(w, r)), w["matrix.first.v.weight"].shape[0]
    m2, m1, b = (emitted[..., :k * k].unflatten(-1, (k, k)), emitted[..., k * k:2 * k * k].unflatten(-1, (k, k)), emitted[..., 2 * k * k:])
    through = lambda name, m, u: ((m @ (u @ w[f"matrix.{name}.v.weight"].T)[..., None])[..., 0]) @ w[f"matrix.{name}.u.weight"].T
    return r + through("second", m2, R.gelu(through("first", m1, a) + b))


ROWS = {
    # 3c: one block for all layers, RMSNorm without a gain
    "11-base": ("parallel", SHARED), "11-apm": ("parallel_novalue", SHARED), "11-apm-nopos": ("parallel_novalue", SHARED | dict(positions="none")),
    "11-axm-multpos": ("axm_novalue", SHARED | dict(positions="times")), "11-axm-addposembagain": ("axm_novalue", SHARED | dict(positions="again")),
    "11-axm-addposembagain-nores": ("axm_no_skip", SHARED | dict(positions="again")), "11-axm-mlpinputmod": ("axm_mlp_reads_product", SHARED), "11-axm-mlpinputmod2": ("axm_mlp_reads_sum", SHARED),
    "11-axm-mlpofy": ("axm_mlp_reads_norm", SHARED), "11-axm-mlponattn": ("axm_mlp_reads_attention", SHARED), "11-axm-mlpvalue, as logged": ("axm_values_from_mlp", SHARED),
    "11-axm-mlpvalue, in the journal": ("axm_scores_from_mlp", SHARED), "11-axm-xvalue-vs-mlp": ("axm_novalue", SHARED), "11-axm-attnofz": ("attention_of_mlp_values", SHARED),
    "11-a-kqmlp": ("attention_of_mlp_scores", SHARED), "11-a-nomlp": ("attention_only_novalue", SHARED), "11-a-mlpasinput": ("attention_of_mlp", SHARED), "11-apm-mlponattn": ("parallel_mlp_reads_attention", SHARED),
    "11-axm-nores": ("axm_no_skip", SHARED), "11-axm-nores-alllayer": ("axm_no_skip", SHARED | dict(loss="all")), "11-mlponly-mlponattn": ("mlp_of_attention_novalue", SHARED),
    "11-mlponly-mlponattn-times": ("mlp_of_attention_times", SHARED), "11-mlponly-mlponattn-value": ("mlp_of_attention", SHARED), "12-gate-mlpofattn": ("forget_gate", SHARED), "12-gate-axg": ("hidden_as_gate", SHARED),
    "12-gate-axg-moreparams": ("mlp_as_gate", SHARED), "12-axm-attentiongate": ("attention_sum_as_gate", SHARED), "12-axm-attentiongate-sigmoid": ("attention_as_gate", SHARED), "12-axm": ("axm_novalue", SHARED),
    "12-scratchpad": ("scratchpad", SHARED), "12-scratchpad-1": ("axm_mlp_reads_sum", SHARED), "12-scratchpad-2": ("axm_mlp_reads_attention", SHARED),
    # 3d: the end of the shared part, then layers of their own
    "13-axm-100warmup": ("axm", SHARED), "13-moreembd": ("axm", SHARED | dict(d_model=1296)), "13-rotator": ("axm_rotated", SHARED), "13-axm-experiment": ("axm_normed_skip", SHARED), "13-axm-deletion": ("deletion", SHARED),
    "13-baseline": ("vanilla", {}), "13-baseline-reuseweights": ("vanilla", dict(share="all")), "13-axm-reuseweights": ("axm", dict(share="all")), "13-axm-reuseweights-48mlp": ("axm", dict(share="all", mlp_ratio=48.)),
    "13-apm-reuseweights-48mlp": ("vanilla", dict(share="all", mlp_ratio=48.)), "13-baseline-axm": ("axm", {}), "13-axm-novalue": ("axm_novalue", {}), "13-axm-targetednegate": ("axm_gated_values", {}), "13-r+rxm+a": ("deletion_novalue", {}),
    "13-2axm": ("2 A° ⊙ M", {}), "13-sigmoidaxm": ("S ⊙ M", {}), "13-sigmoidaxm-diag-nox": ("sigmoid_axm_no_skip", {}), "13-sigmoidaxm+x": ("sigmoid_axm", {}), "13-sigmoidaxm-diag": ("sigmoid_axm_own_one", {}),
    "13-complicated": ("complicated_1", {}), "13-complicated-2": ("complicated_2", {}), "14-complicated-2": ("complicated_2_normed", {}), "13-complicated-3": ("complicated_3", {}), "13-complicated-4": ("complicated_4", {}),
    "13-complicated-5": ("complicated_5", {}), "13-complicated-6": ("complicated_6", {}), "13-nodiagonal": ("A masked ⊙ M", {}), "13-removediagonal": ("A° deleted ⊙ M", {}), "14-zerodiagonal-addback": ("axm_own_added_back", {}),
    "14-zerodiagonal-addback-2": ("A deleted ⊙ M", {}), "14-alltrain": ("vanilla", dict(loss="local")), "14-alltrain-reuseweights": ("vanilla", dict(loss="local", share="all")), "14-alltrain-deep": ("vanilla", dict(loss="all")),
    "14-mlpmatrix": ("matrix_update", dict(rank=48)), "14-mlpmatrix-moreinner": ("matrix_update", dict(rank=128)), "14-mlpmatrix-nobias": ("matrix_update_unbiased", dict(rank=128)),
    "14-mlpmatrix-bxa": ("matrix_update_bias_times_attention", dict(rank=128)), "14-axm-appselector": ("select_1", {}), "14-axm-appselector-2": ("select_2", {}), "14-axm-appselector-3": ("select_3", dict(rank=128)),
    "14-axm-appselector-4": ("select_4", dict(rank=128)), "14-axm-appselector-5": ("select_5", dict(rank=128)), "14-axm-plusattn-nores": ("plus_attention_no_skip", {}), "15-baseline": ("x_escape", {}),
    "14-nodiagonal-baseline": ("own_deleted", {}), "14-nodiagonal-noattn": ("x_escape_own_deleted", {}), "14-nodiagonal-noattn-nomlpres": ("mlp_of_attention_own_deleted", {}),
    "14-nooutlinearbiasmlp": ("vanilla", dict(unbiased=("mlp.out",))),
    # 3e: executors, sinks, gates, programs, parts that are tied or random
    "16-principle-1": ("two_matrices", LATER | dict(rank=64)), "16-principle-2": ("two_matrices", LATER | dict(rank=128)), "16-principle-3": ("two matrices of A", LATER | dict(rank=64)), "16-principle-5": ("concat_normed", LAST),
    "16-principle-6": ("concat_normed", LAST | dict(mlp_ratio=8.)), "16-vanilla-mlpscale-32": ("executor", LAST | dict(mlp_ratio=32.)), "16-vanilla-mlpscale-64": ("executor", LAST | dict(mlp_ratio=64.)),
    "16-attentionsink": ("mean_sink", dict(unbiased=("mlp.out",), share="all", loss="sum")), "16-attentionsink-noreuse": ("y + E", LAST | dict(loss="sum")), "16-attentionsink-noreuse-efficientresw": ("g y + E", LAST | dict(loss="sum")),
    "16-sinkgate-vanilla-2": ("g y + E", LAST | dict(loss="sum")), "16-sinkgate-mlpconcat": ("g y + M[N y; A]", LAST | dict(loss="sum")), "16-sinkgate-mlpconcat-nonorm": ("g y + M[y; A]", LAST | dict(loss="sum")),
    "16-sinkgate-debug": ("r + E, sink", LAST | dict(share="all")), "16-sinkgate-debug-2": ("r + E, sink", LAST | dict(loss="sum")), "17-identity": ("r + E, sink", LAST), "17-identity-test": ("Σg r + (1 − Σg) E", LAST),
    "17-identity-test-no-1minus": ("g r + E", LAST), "17-identity-test-no-1minus-mlpconcat": ("g r + M[y; A]", LAST), "17-identity-test-yes-1minus-mlpconcat": ("g r + (1 − g) M[y; N A]", LAST),
    "17-identity-test-yes-1minus-mlpconcat-noln": ("g r + (1 − g) M[y; A]", LAST), "17-…-faster-2": ("g r + (1 − g) N M[y; A]", LAST), "17-…-crazystuff": ("g r + (1 − g) M[y; A]", LAST | dict(share="all", n_layers=48, mlp_ratio=8.)),
    "17-…-crazystuff-2": ("g y + (1 − g) M[y; A]", LAST | dict(share="all", mlp_ratio=2.)), "17-…-reinit": ("g r + (1 − g) M[y; A]", LAST | dict(sink_growth=2., keys="opposite", n_layers=8)),
    "17-…-reinit-2": ("Σg r + (1 − Σg) M[y; A]", LAST | dict(sink_growth=2., keys="opposite", n_layers=8)), "18-vanilla-noabs": ("executor", LAST | dict(n_layers=8)), "18-vanilla-abs": ("folded", LAST | dict(n_layers=8)),
    "18-router": ("executor", LAST | dict(router="sum", n_layers=8)), "18-router-2": ("executor", LAST | dict(router="sigmoid", n_layers=8)), "18-router-3": ("executor", LAST | dict(router="softmax", n_layers=8)),
    "18-tokenprogram": ("executor", LAST | dict(prefix=768, n_layers=8)), "18-tokenprogram-2": ("executor", LAST | dict(prefix=768, prefix_positions=True)),
    "18-tokenprogram-3": ("executor", LAST | dict(prefix=128, prefix_std=5., prefix_positions=True)), "18-tokenprogram-4": ("executor", LAST | dict(program_std=.5)),
    "18-tokenprogram-5": ("concat", LAST | dict(prefix=128, prefix_std=5., prefix_positions=True)), "18-throughputgate": ("throughput_gate", LAST), "18-reuseattn": ("executor", LAST | dict(share="qkv")),
    "18-reusemlp-only": ("executor", LAST | dict(share="mlp")), "18-fixedattn": ("executor", LAST | dict(frozen="qkv", frozen_std="head")), "18-fixedattn-kq-only": ("executor", LAST | dict(frozen="qk", frozen_std="head")),
    "18-fixedattn-k-only": ("executor", LAST | dict(frozen="k", frozen_std="head")), "18-noattn": ("mlp_only", dict(unbiased=("mlp.out",))), "19-vanilla": ("vanilla", LAST),
}


LOGGED = {
    "13-baseline": 124_475_904, "13-complicated": 124_475_904, "13-complicated-3": 124_475_904, "13-complicated-4": 124_475_904, "13-complicated-5": 124_475_904,
    "13-complicated-6": 124_475_904, "14-alltrain": 124_475_904, "14-alltrain-deep": 124_475_904, "16-sinkgate-debug-2": 124_439_040, "17-identity": 124_439_040,
    "17-identity-test": 124_439_040, "17-identity-test-no-1minus": 124_439_040, "17-identity-test-yes-1minus-mlpconcat": 152_750_592, "17-identity-test-yes-1minus-mlpconcat-noln": 152_732_160,
    "17-…-faster-2": 152_750_592, "17-…-reinit": 114_961_920, "17-…-reinit-2": 114_961_920, "18-vanilla-noabs": 96_099_840, "18-vanilla-abs": 96_099_840,
    "18-router": 96_099_840, "18-router-2": 96_099_904, "18-router-3": 96_099_904, "18-tokenprogram": 96_689_664, "18-tokenprogram-2": 125_618_688, "18-tokenprogram-3":
    124_635_648, "18-tokenprogram-5": 152_928_768, "18-throughputgate": 152_732_172, "18-reuseattn": 104_974_848, "18-fixedattn": 103_205_376, "18-fixedattn-kq-only":
    110_283_264, "18-fixedattn-k-only": 117_361_152, "19-vanilla": 124_439_040,
    "16-attentionsink": 46_508_544, "18-reusemlp-only": 72_483_840, "18-tokenprogram-4": 126_011_904,
}
MORE = {"16-attentionsink": 2 * 768, "18-reusemlp-only": -11 * 2 * 768, "18-tokenprogram-4": 1024 * 768}   # a norm before the readout; one norm for all tied MLPs; places never read
