"""Files for other programs, and the proof of what is in them."""

from sparsedet.export.onnx_audit import OnnxAudit, audit_onnx
from sparsedet.export.onnx_export import export_onnx

__all__ = ["OnnxAudit", "audit_onnx", "export_onnx"]
