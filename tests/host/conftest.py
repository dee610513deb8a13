from demo_model import demo

__all__ = ["demo"]
