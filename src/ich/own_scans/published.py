"""What others reached on public data sets of head CT, to hold one's own figures against."""

PUBLISHED: list[dict] = [
    {
        "who": "Qure.ai, trained on data of their own",
        "on": "CQ500, scans",
        "formats": ["cq500"],
        "auc": {
            **{"epidural": 0.97, "intraparenchymal": 0.95, "intraventricular": 0.93},
            **{"subarachnoid": 0.96, "subdural": 0.95, "any": 0.94},
        },
        "source": "Chilamkurthy et al., arXiv 1803.05854",
    },
    {
        "who": "Teneggi et al., trained on RSNA",
        "on": "CQ500, scans",
        "formats": ["cq500"],
        "auc": {"any": 0.90},
        "source": "PMC10831525",
    },
    {
        "who": "Teneggi et al., trained on RSNA",
        "on": "CT-ICH, scans",
        "formats": ["ct-ich"],
        "auc": {"any": 0.92},
        "source": "PMC10831525",
    },
    {
        "who": "Teneggi et al., trained on RSNA",
        "on": "RSNA itself, scans",
        "formats": ["cq500", "ct-ich", "plain"],
        "auc": {"any": 0.96},
        "source": "PMC10831525",
    },
    {
        "who": "the winners of RSNA 2019",
        "on": "RSNA itself",
        "formats": ["cq500", "ct-ich", "plain"],
        "auc": {
            **{"epidural": 0.984, "intraparenchymal": 0.992, "intraventricular": 0.996},
            **{"subarachnoid": 0.985, "subdural": 0.983, "any": 0.988},
        },
        "source": "PMC8377493",
    },
    *(
        {
            "who": "trained on RSNA",
            "on": "another hospital",
            "formats": ["plain"],
            "auc": {"any": auc},
            "source": source,
        }
        for auc, source in ((0.954, "arXiv 2102.04869"), (0.96, "PMC11605431"), (0.842, "HKMJ 29(2)"))
    ),
]
"""AUCs by label, with their source, and the formats of labels beside which the page shows them."""
