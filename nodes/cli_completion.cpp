// completion: a script for the shell, made by walking the tree of commands, so that it never knows less than --help does.
//
// All three scripts work alike: the words before the cursor are followed down the tree ("falaj models list"), stepping over values of
// options; then what may stand there is offered.
#include <algorithm>
#include <map>

#include "nodes/cli.hpp"
#include "runtime/base/format.hpp"

namespace falaj::nodes {
namespace {

struct Value {
  enum class Kind : unsigned char { none, text, file, directory, words } kind = Kind::none;
  std::vector<std::string> words;
};

struct Place {  // one command of the tree
  std::string path;
  std::vector<std::pair<std::string, std::string>> commands;  // name, description
  std::vector<std::pair<std::string, std::string>> options;   // "--dir", description
  std::map<std::string, std::string> shorts;                  // "--dir" -> "d"
  std::map<std::string, Value> takes;                         // options with a value, under each of their names
  Value argument;                                             // the first that is a file or one of some words
};

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

// What help shows as the type: FILE, DIR, TEXT, TEXT:{table,json}.
Value value_of(const CLI::Option& option) {
  Value value;
  if (option.get_items_expected_max() == 0) return value;
  const auto type = option.get_type_name();
  const auto open = type.find('{');
  const auto close = type.find('}');
  if (open != type.npos && close != type.npos) {
    value.kind = Value::Kind::words;
    std::string word;
    for (const char c : type.substr(open + 1, close - open - 1) + ",") {
      if (c != ',') {
        word += c;
      } else {
        value.words.push_back(std::exchange(word, {}));
      }
    }
    return value;
  }
  value.kind = type == "FILE" ? Value::Kind::file : type == "DIR" ? Value::Kind::directory : Value::Kind::text;
  return value;
}

void walk(const CLI::App& app, const std::string& path, std::vector<Place>& places) {
  Place place;
  place.path = path;
  for (const auto* option : app.get_options()) {
    if (option->get_group().empty()) continue;
    const auto value = value_of(*option);
    if (option->get_positional()) {
      const bool told = value.kind != Value::Kind::text && value.kind != Value::Kind::none;
      if (told && place.argument.kind == Value::Kind::none) place.argument = value;
      continue;
    }
    for (const auto& name : option->get_lnames()) place.options.emplace_back("--" + name, first_line(option->get_description()));
    if (!option->get_lnames().empty() && !option->get_snames().empty())
      place.shorts["--" + option->get_lnames().front()] = option->get_snames().front();
    if (value.kind == Value::Kind::none) continue;
    for (const auto& name : option->get_lnames()) place.takes["--" + name] = value;
    for (const auto& name : option->get_snames()) place.takes["-" + name] = value;
  }
  std::vector<const CLI::App*> below;
  for (const auto* command : app.get_subcommands([](const CLI::App* one) { return !one->get_group().empty(); })) {
    place.commands.emplace_back(command->get_name(), first_line(command->get_description()));
    below.push_back(command);
  }
  places.push_back(std::move(place));
  for (const auto* command : below) walk(*command, path + " " + command->get_name(), places);
}

std::string in_quotes(std::string_view text) {
  std::string out = "'";
  for (const char c : text) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

std::string joined(const std::vector<std::string>& words) {
  std::string out;
  for (const auto& word : words) out += (out.empty() ? "" : " ") + word;
  return out;
}

std::string names(const std::vector<std::pair<std::string, std::string>>& described) {
  std::vector<std::string> words;
  words.reserve(described.size());
  for (const auto& [name, what] : described) words.push_back(name);
  return joined(words);
}

std::string kind_name(const Value& value) {
  switch (value.kind) {
    case Value::Kind::file:
      return "file";
    case Value::Kind::directory:
      return "directory";
    case Value::Kind::words:
      return "words " + joined(value.words);
    case Value::Kind::text:
      return "text";
    default:
      return "";
  }
}

// Shared by bash and zsh: `_falaj_at PATH` and `_falaj_takes PATH OPTION` as case statements over the tree.
std::string tables(const std::vector<Place>& places) {
  std::string takes;
  std::string commands;
  std::string options;
  std::string arguments;
  for (const auto& place : places) {
    for (const auto& [name, value] : place.takes)
      takes += format("    {}) echo {} ;;\n", in_quotes(place.path + " " + name), in_quotes(kind_name(value)));
    if (!place.commands.empty()) commands += format("    {}) echo {} ;;\n", in_quotes(place.path), in_quotes(names(place.commands)));
    if (!place.options.empty()) options += format("    {}) echo {} ;;\n", in_quotes(place.path), in_quotes(names(place.options)));
    const auto argument = kind_name(place.argument);
    if (!argument.empty()) arguments += format("    {}) echo {} ;;\n", in_quotes(place.path), in_quotes(argument));
  }
  const auto function = [](std::string_view name, std::string_view cases) {
    return format("{}() {{\n  case \"$1\" in\n{}  esac\n}}\n", name, cases);
  };
  return function("_falaj_commands", commands) + function("_falaj_options", options) + function("_falaj_arguments", arguments) +
         function("_falaj_takes", takes);
}

constexpr std::string_view kFollow =
    R"sh(# Sets `place` and `kind` (what the word under the cursor is the value of) from the words before it.
_falaj_follow() {
  local word
  place=falaj
  kind=
  shift
  for word in "$@"; do
    if [ -n "$kind" ]; then
      kind=
      continue
    fi
    kind=$(_falaj_takes "$place $word")
    case " $(_falaj_commands "$place") " in
      *" $word "*) place="$place $word" ;;
    esac
  done
}
)sh";

std::string bash(const std::vector<Place>& places) {
  return "# falaj in bash: source <(falaj completion bash)\n" + tables(places) + std::string(kFollow) + R"sh(_falaj() {
  local cur=${COMP_WORDS[COMP_CWORD]} place kind
  _falaj_follow "${COMP_WORDS[@]:0:COMP_CWORD}"
  if [ -z "$kind" ]; then
    case "$cur" in
      -*)
        COMPREPLY=($(compgen -W "$(_falaj_options "$place")" -- "$cur"))
        return
        ;;
    esac
    kind="words $(_falaj_commands "$place")"
    [ "$kind" = "words " ] && kind=$(_falaj_arguments "$place")
  fi
  case "$kind" in
    file)
      compopt -o filenames 2>/dev/null
      COMPREPLY=($(compgen -f -- "$cur"))
      ;;
    directory)
      compopt -o filenames 2>/dev/null
      COMPREPLY=($(compgen -d -- "$cur"))
      ;;
    "words "*) COMPREPLY=($(compgen -W "${kind#words }" -- "$cur")) ;;
  esac
}
complete -F _falaj falaj
)sh";
}

std::string zsh(const std::vector<Place>& places) {
  std::string described;
  for (const auto& place : places) {
    if (place.commands.empty()) continue;
    described += format("    {}) shown=(", in_quotes(place.path));
    for (const auto& [name, what] : place.commands) described += "\n      " + in_quotes(name + ":" + what);
    described += ") ;;\n";
  }
  return "#compdef falaj\n# falaj in zsh: source <(falaj completion zsh), after compinit; or as the file _falaj in a folder of "
         "$fpath\n" +
         tables(places) + std::string(kFollow) + "_falaj_shown() {\n  shown=()\n  case \"$1\" in\n" + described + R"sh(  esac
}
_falaj() {
  local place kind
  local -a shown
  _falaj_follow "${(@)words[1,CURRENT-1]}"
  if [[ -z "$kind" ]]; then
    if [[ "${words[CURRENT]}" == -* ]]; then
      compadd -- ${=$(_falaj_options "$place")}
      return
    fi
    _falaj_shown "$place"
    if (( ${#shown} )); then
      _describe command shown
      return
    fi
    kind=$(_falaj_arguments "$place")
  fi
  case "$kind" in
    file) _files ;;
    directory) _files -/ ;;
    words\ *) compadd -- ${=kind#words } ;;
  esac
}
if [ "$funcstack[1]" = _falaj ]; then _falaj "$@"; else compdef _falaj falaj; fi
)sh";
}

std::string fish(const std::vector<Place>& places) {
  std::string paths;
  std::string takes;
  std::string out;
  for (const auto& place : places) {
    const auto here = format("complete -c falaj -n {}", in_quotes("__falaj_at " + in_quotes(place.path)));
    for (const auto& [name, what] : place.commands) {
      paths += " " + in_quotes(place.path + " " + name);
      out += format("{} -a {} -d {}\n", here, in_quotes(name), in_quotes(what));
    }
    for (const auto& [name, value] : place.takes) takes += " " + in_quotes(place.path + " " + name);
    for (const auto& [name, what] : place.options) {
      out += format("{} -l {} -d {}", here, in_quotes(name.substr(2)), in_quotes(what));
      if (const auto found = place.shorts.find(name); found != place.shorts.end()) out += " -s " + found->second;
      if (const auto found = place.takes.find(name); found != place.takes.end()) {
        const auto& value = found->second;
        out += value.kind == Value::Kind::file        ? " -r -F"
               : value.kind == Value::Kind::directory ? " -x -a '(__fish_complete_directories)'"
                                                      : " -x";
        if (value.kind == Value::Kind::words) out += " -a " + in_quotes(joined(value.words));
      }
      out += "\n";
    }
    if (place.argument.kind == Value::Kind::file) out += here + " -F\n";
    if (place.argument.kind == Value::Kind::directory) out += here + " -a '(__fish_complete_directories)'\n";
    if (place.argument.kind == Value::Kind::words) out += format("{} -a {}\n", here, in_quotes(joined(place.argument.words)));
  }
  return "# falaj in fish: falaj completion fish | source\nset -g __falaj_paths" + paths + "\nset -g __falaj_takes" + takes +
         R"sh(
function __falaj_at
  set -l place falaj
  set -l skip 0
  for word in (commandline -opc)[2..]
    if test $skip = 1
      set skip 0
    else if contains -- "$place $word" $__falaj_takes
      set skip 1
    else if contains -- "$place $word" $__falaj_paths
      set place "$place $word"
    end
  end
  test "$place" = "$argv[1]"
end
complete -c falaj -f
)sh" + out;
}

}  // namespace

void add_completion_command(CLI::App& app, Cli& cli) {
  const auto shell = std::make_shared<std::string>();
  auto* command = app.add_subcommand("completion", "Print what makes a shell complete commands and options");
  command->add_option("shell", *shell, "bash, zsh or fish")->required()->check(CLI::IsMember({"bash", "zsh", "fish"}));
  command->footer(
      "Example:\n"
      "  source <(falaj completion bash)                                        # this shell; in ~/.bashrc: all of them\n"
      "  falaj completion zsh > \"${fpath[1]}/_falaj\"                            # before compinit\n"
      "  falaj completion fish > ~/.config/fish/completions/falaj.fish");
  cli.runs(*command, [&app, shell] {
    std::vector<Place> places;
    walk(app, "falaj", places);
    const auto script = *shell == "bash" ? bash(places) : *shell == "zsh" ? zsh(places) : fish(places);
    std::fwrite(script.data(), 1, script.size(), stdout);
    return Status{};
  });
}

}  // namespace falaj::nodes
