// What this library was built from: setup.py defines QUOTA_SOURCES, quota/ops/cpu/library.py compares it.

#ifndef QUOTA_SOURCES
#define QUOTA_SOURCES ""
#endif

extern "C" const char *quota_sources() { return QUOTA_SOURCES; }
