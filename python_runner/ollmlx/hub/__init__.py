"""The Hugging Face hub, asked for the host by the huggingface_hub library (docs/hub.md).

`task` is the gRPC service, `repository` what a repository holds, `accounts` who the user is, `architectures` what the
engine could run, `client` the library's HTTP client and the meaning of its errors.
"""
