"""The page of ``tfclip app`` as a Space of the Hugging Face Hub."""

from tfclip.app import build_app, serve

if __name__ == "__main__":
    serve(build_app("tfclip-tiny"), host="0.0.0.0", port=7860)  # a Space shows what listens there
