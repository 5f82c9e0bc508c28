from eosjax.reports.plan_tables import ParameterGroup, memory_table, parameter_table


def test_parameters_are_summed():
    groups = [
        ParameterGroup("projector", 1_000, 4_000_000, False, ["bfloat16", "float32"]),
        ParameterGroup("lora", 2_000, 8_000_000, True, ["float32"]),
    ]
    assert parameter_table(groups).splitlines() == [
        "parameters  number     GB",
        "projector    1,000  0.004  frozen, bfloat16 and float32",
        "lora         2,000  0.008  trained, float32",
        "all          3,000         2,000 of them trained",
    ]


def test_memory_is_summed_at_each_batch_size():
    memories = {8: {"frozen": 10**9, "temporaries": 2 * 10**9}, 64: {"frozen": 10**9, "temporaries": 5 * 10**8}}
    assert memory_table(memories).splitlines() == [
        "GB on a device, at --batch_size      8     64",
        "frozen weights                   1.000  1.000",
        "activations, gradients           2.000  0.500",
        "peak                             3.000  1.500",
    ]
