#!/bin/sh
# Compiles this bundle's models on a Mac. OUT becomes the bundle with models/STEM.mlmodelc in the place of
# models/STEM.mlpackage; all other files are copied as they are, metadata.json and checksums.json included.
# An app that ships OUT compiles nothing on the device and holds the weights once.
#
#     scripts/compile_models.sh OUT [OPTION ...]
#
# OUT must not be there yet. It is built as OUT.partial and renamed when it is whole; what fails leaves neither.
# OPTIONs go to the compiler, such as --platform ios --deployment-target 18.0; none is needed.
# Needs Xcode 16 or later, whose coremlcompiler reads models for iOS 18; the Command Line Tools alone have none.
#
# As a Run Script phase of an Xcode target (the bundle is then no resource of any target):
#
#     bundle="$SRCROOT/FastVLM"
#     out="$TARGET_BUILD_DIR/$UNLOCALIZED_RESOURCES_FOLDER_PATH/FastVLM"
#     if cmp -s "$bundle/checksums.json" "$out/checksums.json"; then exit 0; fi
#     rm -rf "$out"
#     /bin/sh "$bundle/scripts/compile_models.sh" "$out"
#
#     Input Files   $(SRCROOT)/FastVLM/checksums.json
#     Output Files  $(TARGET_BUILD_DIR)/$(UNLOCALIZED_RESOURCES_FOLDER_PATH)/FastVLM/checksums.json
#     Build setting ENABLE_USER_SCRIPT_SANDBOXING = NO: a sandboxed phase may write only files that it lists
#
# checksums.json has the hash of every file of the bundle: while it is the same in both places OUT is up to date. Xcode
# signs the app after its phases, so OUT is sealed with it and needs no signature of its own.
#
# fastvlm verify OUT --compiled then checks all but the compiled models.
set -eu

refuse() {
    echo "error: $1" >&2
    exit 2
}

fail() {
    echo "error: $1" >&2
    exit 1
}

made=
tidy() {
    status=$?
    trap - EXIT
    if [ -n "$made" ]; then rm -rf "$made"; fi
    exit "$status"
}
trap tidy EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

case ${1-} in
    '' | -*)
        echo "usage: scripts/compile_models.sh OUT [OPTION ...]" >&2
        echo "Copies this bundle to OUT, which must not exist, with its models compiled by Xcode." >&2
        echo "OPTIONs go to coremlcompiler, such as --platform ios --deployment-target 18.0." >&2
        exit 2
        ;;
esac

case $0 in
    */*) scripts=${0%/*} ;;
    *) scripts=. ;;
esac
bundle=$(CDPATH='' cd "$scripts/.." && pwd -P)
[ -f "$bundle/checksums.json" ] || refuse "$bundle holds no checksums.json; run this script inside a bundle"

out=$1
shift
while [ "$out" != "${out%/}" ]; do out=${out%/}; done
case $out in
    /*) ;;
    *) out=$PWD/$out ;;
esac
parent=${out%/*}
[ -d "$parent/" ] || refuse "$parent is no folder; make it first"
out=$(CDPATH='' cd "$parent/" && pwd -P)/${out##*/}
case ${out##*/} in
    '' | . | ..) refuse "$out cannot be made; name a folder that is not there yet" ;;
esac
case $out/ in
    "$bundle"/*) refuse "$out is inside the bundle; name a folder outside of $bundle" ;;
esac
if [ -e "$out" ] || [ -L "$out" ]; then refuse "$out is there already; remove it or name another folder"; fi

names=$(sed -n 's|^ *"models/\([A-Za-z0-9._-]*\)\.mlpackage/.*|\1|p' "$bundle/checksums.json" | sort -u)
[ -n "$names" ] || refuse "$bundle/checksums.json names no package in models; take the bundle anew"
missing=
for stem in $names; do
    if [ ! -f "$bundle/models/$stem.mlpackage/Manifest.json" ]; then missing="$missing models/$stem.mlpackage"; fi
done
[ -z "$missing" ] || refuse "missing or not whole:$missing; take the bundle anew (fastvlm verify lists all)"

command -v xcrun >/dev/null 2>&1 || refuse "there is no xcrun; this script needs a Mac with Xcode"
xcrun --find coremlcompiler >/dev/null 2>&1 || refuse "xcrun finds no coremlcompiler, which comes with Xcode, not with \
the Command Line Tools; install Xcode, then: sudo xcode-select --switch /Applications/Xcode.app"

mkdir "$out.partial" || refuse "$out.partial cannot be made; if a run that was killed has left it, remove it"
made=$out.partial
mkdir "$made/models"

for file in "$bundle"/* "$bundle"/models/*; do
    case $file in
        "$bundle/models" | "$bundle"/models/*.mlpackage) ;;
        "$bundle"/models/*) if [ -e "$file" ]; then cp -R "$file" "$made/models/"; fi ;;
        *) cp -R "$file" "$made/" ;;
    esac
done

for package in "$bundle"/models/*.mlpackage; do
    name=${package##*/}
    name=${name%.mlpackage}.mlmodelc
    echo "compiling models/${package##*/}"
    xcrun coremlcompiler compile "$package" "$made/models" ${1+"$@"} ||
        fail "coremlcompiler failed on $package (Xcode 16 or later is needed)"
    [ -f "$made/models/$name/coremldata.bin" ] || fail "coremlcompiler wrote no models/$name"
done

if [ -e "$out" ] || [ -L "$out" ]; then refuse "$out has come meanwhile; remove it and start again"; fi
mv "$made" "$out"
made=
echo "$out"
