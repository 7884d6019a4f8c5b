"""Detect images with a trigger, by queries of the classifier.

base.py                    the interface `Detector`
ablation.py                `AblationDetector`, the default: one feature decides the label alone
ablation_views.py          its views: the image without a feature, or with one feature alone
ablation_statistics.py     its scores, and their reference statistics on clean images
scaleup.py                 `ScaleUp`, a published detector
purify_all.py              `PurifyAll`, which flags every image
saving.py                  JSON files of detectors
classifier_client.py       batches, time-outs and checks of the queries
"""
