"""Tests of loadtests/."""
