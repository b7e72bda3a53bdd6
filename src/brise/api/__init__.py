"""The public Python API: `import brise` shows what lies here."""
