def engine_process() -> None:
    """What the process that LMDeploy spawns for its engine would run on."""
    import asyncio
    import gc
    import os

    loop = asyncio.new_event_loop()
    trim = os.environ.get("LMDEPLOY_MULTIMODAL_SESSION_TRIM_COUNT")
    print(f"engine process: loop {type(loop).__module__}, frozen {gc.get_freeze_count() > 0}, trim {trim}", flush=True)
    loop.close()
