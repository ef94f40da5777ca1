"""The bundled fitters: parametric, joint, IsoFLOP profiles and the envelope of training curves."""
