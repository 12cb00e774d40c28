#include "nodes/trace_file.hpp"

#include <algorithm>
#include <limits>
#include <set>

#include "runtime/base/format.hpp"
#include "runtime/net/http/json_writer.hpp"

namespace falaj::nodes {
namespace {

using TraceId = std::pair<std::uint64_t, std::uint64_t>;

struct Stop {  // of a trace's way
  double at_us;
  std::size_t node;
  std::uint64_t actor;
};

std::string trace_text(const TraceId& id) { return format("{:016x}{:016x}", id.first, id.second); }

class Writer {
 public:
  explicit Writer(const std::vector<TracedNode>& nodes) : nodes_(nodes) {
    std::int64_t first = std::numeric_limits<std::int64_t>::max();
    for (const auto& node : nodes) {
      for (const auto& page : node.pages) {
        for (const auto span : page->getSpans()) first = std::min(first, span.getBeginNs() - node.ahead_ns);
      }
    }
    begin_ = first;
  }

  TraceFile write() {
    for (std::size_t n = 0; n < nodes_.size(); ++n) {
      event(format(R"({{"ph":"M","name":"process_name","pid":{},"args":{{"name":{}}}}})", n, net::json_text(nodes_[n].name)));
      std::set<std::uint64_t> actors;
      for (const auto& page : nodes_[n].pages) {
        for (const auto span : page->getSpans()) {
          if (actors.insert(span.getActor()).second) name_actor(n, span);
          slice(n, span);
        }
      }
    }
    arrows();
    out_.json += "\n]}\n";
    return std::move(out_);
  }

 private:
  void event(const std::string& text) {
    out_.json += out_.json.empty() ? "{\"displayTimeUnit\":\"ns\",\"traceEvents\":[\n" : ",\n";
    out_.json += text;
  }

  void name_actor(std::size_t n, messages::Span::Reader span) {
    std::string name(text(span.getName()));
    if (name.empty()) name = format("actor {}", span.getActor());
    event(format(R"({{"ph":"M","name":"thread_name","pid":{},"tid":{},"args":{{"name":{}}}}})", n, span.getActor(), net::json_text(name)));
  }

  void slice(std::size_t n, messages::Span::Reader span) {
    const double at = static_cast<double>(span.getBeginNs() - nodes_[n].ahead_ns - begin_) / 1e3;
    const TraceId id{span.getTraceHigh(), span.getTraceLow()};
    const auto what = span.getMessage().size() != 0 ? text(span.getMessage()) : text(span.getKind());
    std::string line = format(R"({{"ph":"X","name":{},"cat":{},"pid":{},"tid":{},"ts":{:.3f},"dur":{:.3f},"args":{{"waited_us":{:.3f})",
                              net::json_text(what), net::json_text(text(span.getKind())), n, span.getActor(), at,
                              static_cast<double>(span.getHandledNs()) / 1e3, static_cast<double>(span.getWaitedNs()) / 1e3);
    if (span.getFrom().size() != 0) line += format(R"(,"from":{})", net::json_text(text(span.getFrom())));
    if (id != TraceId{}) {
      line += format(R"(,"trace":"{}","span":"{:016x}")", trace_text(id), span.getSpan());
      ways_[id].push_back({at, n, span.getActor()});
    }
    event(line + "}}");
    ++out_.spans;
  }

  // Bound to the slice of that thread at that time.
  void arrows() {
    for (auto& [id, way] : ways_) {
      if (way.size() < 2) continue;
      ++out_.traces;
      std::ranges::stable_sort(way, {}, &Stop::at_us);
      for (std::size_t i = 0; i < way.size(); ++i) {
        const char* kind = i == 0 ? "s" : i + 1 == way.size() ? "f" : "t";
        event(format(R"({{"ph":"{}","name":"trace","cat":"trace","id":"{}","bp":"e","pid":{},"tid":{},"ts":{:.3f}}})", kind, trace_text(id),
                     way[i].node, way[i].actor, way[i].at_us));
      }
    }
  }

  const std::vector<TracedNode>& nodes_;
  std::int64_t begin_ = 0;
  TraceFile out_;
  std::map<TraceId, std::vector<Stop>> ways_;
};

}  // namespace

TraceFile trace_file(const std::vector<TracedNode>& nodes) { return Writer(nodes).write(); }

}  // namespace falaj::nodes
