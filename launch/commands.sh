# How every script of launch/ reads its arguments: --dry-run, --help, and required variables. Sourced. Works in
# bash 3.2 too, which macOS has.
# shellcheck shell=bash
# shellcheck disable=SC2034 # read_arguments and split_flags set variables for the script that sources this

dry_run=false
flags=()

# Prints the header comment of the script.
show_help() {
  awk 'NR > 1 { if (!/^#( |$)/) exit; sub(/^# ?/, ""); print }' "$0"
}

# Sets dry_run, and flags to all other arguments. --dry-run may stand anywhere: a flag before it must not
# start a run that was only to be shown.
read_arguments() {
  local argument
  for argument in "$@"; do
    case $argument in
      --dry-run) dry_run=true ;;
      -h | --help)
        show_help
        exit 0
        ;;
      *) flags+=("$argument") ;;
    esac
  done
}

# Sets first to the arguments before a `--`, if there is one, and flags to those after it.
split_flags() {
  local i
  first=()
  for ((i = 0; i < ${#flags[@]}; i++)); do
    if [ "${flags[i]}" = -- ]; then
      [ "$i" -eq 0 ] || first=("${flags[@]:0:i}")
      if [ $((i + 1)) -eq ${#flags[@]} ]; then flags=(); else flags=("${flags[@]:i+1}"); fi
      return
    fi
  done
}

# Prints in one line what is wrong with the call, and exits.
refuse() {
  echo "error: $1" >&2
  exit 2
}

# Refuses the call unless every variable named is set; all missing ones are named.
need() {
  local name missing=""
  for name in "$@"; do
    [ -n "${!name:-}" ] || missing="$missing${missing:+, }$name"
  done
  [ -z "$missing" ] || refuse "not set: $missing; set them in the environment ($0 --help says what they are)"
}

# Refuses any other argument.
take_no_flags() {
  [ "${#flags[@]}" -eq 0 ] || refuse "'${flags[0]}' is not an argument of $0, which takes --dry-run and --help"
}

# Refuses the variable unless it is a whole number.
need_number() {
  [[ ${!1} =~ ^[0-9]+$ ]] || refuse "$1='${!1}' is not a whole number: set it, for example $1=20"
}

# Prints the words as a line of shell that yields the same words again, through ssh too.
quoted() {
  local word line=""
  for word in "$@"; do
    line="$line${line:+ }$(printf '%q' "$word")"
  done
  printf '%s' "$line"
}

# Runs a command, or prints it with --dry-run.
run() {
  if [ "$dry_run" = true ]; then
    printf '%s\n' "$(quoted "$@")"
  else
    "$@"
  fi
}
