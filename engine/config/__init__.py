"""The user's file: sing-box's JSON dialect in, a checked EngineConfig or all of its errors out.

    text --dialect--> tree with positions --legacy--> modern tree --decode--> options --build--> EngineConfig

dialect    comments, trailing commas; every key and value knows where it stands
problems   places, errors and warnings, all of a file at once
legacy     the forms of sing-box 1.8 to 1.13, rewritten to those of 1.14 with a warning each
decode     tree -> msgspec Structs, collecting every error
options    the Structs: what may stand in the file, and the JSON schema made of them
build      options -> what the engine runs on (shared/config), with every reference checked
load       all of it, for files on disk
"""
