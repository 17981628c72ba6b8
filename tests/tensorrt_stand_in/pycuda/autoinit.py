import atexit
import os


@atexit.register
def end_context():
    import tensorrt

    if tensorrt.there:
        print("the context ended before", *(type(each).__name__ for each in tensorrt.there), flush=True)
        os._exit(1)
