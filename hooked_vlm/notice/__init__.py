"""NOTICE, end to end: from pairs of images to universal heads.

    from hooked_vlm.notice.config import NoticeConfig
    from hooked_vlm.notice.run import run

    run(NoticeConfig(model="zoo:blip-shapes", tasks=("colour", "shape"), examples=24), "runs/blip")

is `hooked-vlm notice zoo:blip-shapes --task colour --task shape --examples 24 --out runs/blip`.
"""
