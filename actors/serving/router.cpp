#include "actors/serving/router.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>
#include <unordered_map>

#include "actors/features/front.hpp"
#include "actors/serving/traffic.hpp"
#include "messages/envelope.capnp.h"
#include "messages/features.capnp.h"
#include "messages/serving.capnp.h"
#include "runtime/base/format.hpp"
#include "runtime/base/limits.hpp"

namespace falaj::serving {
namespace {

using namespace messages;
using falaj::ErrorCode;
using falaj::Scope;
using falaj::ScopeRef;

// How often the view is looked at again while nobody can answer.
constexpr auto kLookAgain = std::chrono::milliseconds(5);

// A full replica is asked again, or another one, so many times: more would add to the load that filled it.
constexpr int kOverloadedMax = 3;

class Router final : public ActorOf<Router> {
 public:
  static constexpr std::string_view kType = "serving/router";
  static void handlers(Handlers<Router>& on) {
    on.message<Infer>(&Router::infer);
    on.message<Predict>(&Router::predict);
    on.message<DescribeModel>(&Router::describe);
  }
  explicit Router(RouterOptions options) : options_(options) {}

 private:
  Task<> infer(Context& ctx, Msg<Infer> m) {
    const auto begin = ctx.now();
    const std::string model(text(m->getModel()));
    auto routed = route<InferReply>(ctx, model, m->getVersion(), m.message(), m.options(), m.deadline());
    const auto answer = co_await std::move(routed);
    note(ctx, model, begin, answer ? nullptr : &answer.error());
    if (!answer) co_return m.refuse(answer.error());
    note_run(ctx, model, **answer);
    m.reply(answer->message());
  }

  Task<> describe(Context& ctx, Msg<DescribeModel> m) {
    auto routed = route<ModelDescription>(ctx, std::string(text(m->getModel())), 0, m.message(), m.options(), m.deadline());
    const auto answer = co_await std::move(routed);
    if (!answer) co_return m.refuse(answer.error());
    m.reply(answer->message());
  }

  Task<> predict(Context& ctx, Msg<Predict> m) {
    const auto begin = ctx.now();
    const std::string model(text(m->getModel()));
    auto work = predict_rows(ctx, m);
    auto answer = co_await std::move(work);
    note(ctx, model, begin, answer ? nullptr : &answer.error());
    if (!answer) co_return m.refuse(answer.error());
    m.reply(std::move(answer).value());
  }

  // ---- choosing a replica -----------------------------------------------------------------------------------------------------

  Status may_use(const ScopeRef& scope, Deployment::Reader deployment) const {
    const auto owner = text(deployment.getOwner().getTenant());
    const std::string_view tenant = !scope || scope->tenant.empty() ? std::string_view("default") : std::string_view(scope->tenant);
    if (scope && tenant != (owner.empty() ? std::string_view("default") : owner)) {
      return error(ErrorCode::not_found, format("no deployment '{}' in tenant '{}'", text(deployment.getName()), tenant));
    }
    return {};
  }

  // Fewest requests under way, of two drawn at random when there are many (Mitzenmacher, "The Power of Two Choices", 2001); of equals
  // the one on this node. `avoid` has just failed: it is asked again only when nobody else is there.
  std::string choose(Context& ctx, const cluster::ClusterSnapshot& view, const std::string& prefix, const std::string& avoid) {
    auto names = view.ready_with_prefix(prefix);
    if (names.size() > 1) std::erase(names, avoid);
    if (names.empty()) return {};
    if (names.size() == 1) return std::move(names.front());
    const auto a = ctx.random().below(names.size());
    auto b = ctx.random().below(names.size() - 1);
    if (b >= a) ++b;
    const auto load_a = load_of(names[a]);
    const auto load_b = load_of(names[b]);
    const bool other = load_b < load_a || (load_b == load_a && is_local(ctx, view, names[b]) && !is_local(ctx, view, names[a]));
    return std::move(names[other ? b : a]);
  }

  std::uint32_t load_of(const std::string& replica) const {
    const auto found = under_way_.find(replica);
    return found == under_way_.end() ? 0 : found->second;
  }

  static bool is_local(Context& ctx, const cluster::ClusterSnapshot& view, const std::string& replica) {
    const auto address = view.find(replica);
    return address && address->node == ctx.node();
  }

  // Asks one replica after another until one answers or the deadline comes. What may be asked again: a replica that is lost, loading or
  // full. What a model says about the request itself is final. While nobody is there the view is waited for.
  template <class Reply>
  Task<Result<View<Reply>>> route(Context& ctx, std::string model, std::uint64_t version, Message message, SendOptions options,
                                  Instant deadline) {
    if (deadline == Instant::max()) deadline = ctx.now() + limits::kAskDefault;
    const std::string prefix = "serving/replica/" + model + "/";
    std::string last;
    int overloaded = 0;
    Error why = error(ErrorCode::overloaded, format("no replica of '{}' is ready", model));
    for (bool first = true;; first = false) {
      const auto view = options_.view->get();
      const auto deployment = view ? view->deployment(model) : std::nullopt;
      if (view && !deployment) co_return error(ErrorCode::not_found, format("no deployment '{}'", model));
      if (deployment) {
        if (auto allowed = may_use(options.scope, *deployment); !allowed) co_return allowed.error();
        const auto name = choose(ctx, *view, prefix, last);
        if (!name.empty()) {
          if (!first) traffic(ctx, model).retries->add();
          options.timeout = deadline - ctx.now();
          ++under_way_[name];
          auto& pending = *traffic(ctx, model).pending;
          pending.add(1);
          auto asked = ctx.ask<Reply>(ctx.find(name), message, options);
          auto answer = co_await asked;
          pending.add(-1);
          if (--under_way_[name] == 0) under_way_.erase(name);
          if (answer.has_value() || final(answer.error().code, version)) co_return answer;
          if (answer.error().code == ErrorCode::overloaded && ++overloaded >= kOverloadedMax) co_return answer;
          why = answer.error();
          const bool another = last != name;  // else it was the only one, twice
          last = name;
          if (another && first) continue;
        }
      }
      if (ctx.now() + kLookAgain >= deadline) break;
      co_await ctx.sleep(kLookAgain);
    }
    co_return why;
  }

  // not_found: the replica has moved; but with a version wished for it may as well be the replica's own word.
  static bool final(ErrorCode code, std::uint64_t version) {
    if (code == ErrorCode::not_found) return version != 0;
    return code != ErrorCode::unreachable && code != ErrorCode::gone && code != ErrorCode::overloaded;
  }

  // ---- by entity ----------------------------------------------------------------------------------------------------------------

  Task<Result<Message>> predict_rows(Context& ctx, const Msg<Predict>& m) {
    const std::string model(text(m->getModel()));
    const auto view = options_.view->get();
    if (!view) co_return error(ErrorCode::unreachable, "this node has no cluster view yet; try again");
    const auto deployment = view->deployment(model);
    if (!deployment) co_return error(ErrorCode::not_found, format("no deployment '{}'", model));
    if (text(deployment->getView()).empty())
      co_return invalid(format("deployment '{}' names no feature view; set `view`, or send the features with Infer", model));
    if (m->getEntities().size() == 0) co_return invalid("entities: name at least one");
    auto inputs = co_await inputs_of(ctx, model, m.options(), m.deadline());
    if (!inputs) co_return inputs.error();

    auto options = m.options();
    if (!options.scope || options.scope->purpose.empty()) {
      auto scope = options.scope ? std::make_shared<Scope>(*options.scope) : std::make_shared<Scope>();
      scope->purpose = text(deployment->getPurpose());
      options.scope = std::move(scope);
    }
    const auto question = Message::build<GetFeatures>([&](GetFeatures::Builder b) {
      b.setView(deployment->getView());
      b.setTenant(deployment->getOwner().getTenant());
      b.setEntities(m->getEntities());
    });
    auto asked = ctx.ask<Features>(ctx.find(features::kFront), question, options);
    const auto found = co_await asked;
    if (!found) co_return found.error();
    auto request = infer_of(model, text(m->getId()), **inputs, **found);
    if (!request) co_return request.error();
    auto routed = route<InferReply>(ctx, model, 0, std::move(request).value(), m.options(), m.deadline());
    const auto answer = co_await std::move(routed);
    if (!answer) co_return answer.error();
    note_run(ctx, model, **answer);
    co_return Message::build<PredictReply>(
        [&](PredictReply::Builder b) {
          b.setModel((*answer)->getModel());
          b.setVersion((*answer)->getVersion());
          b.setId(m->getId());
          b.setOutputs((*answer)->getOutputs());
          std::vector<capnp::Text::Reader> missing;
          for (const auto row : (*found)->getRows()) {
            if (row.getStatus() != RowStatus::PRESENT) missing.push_back(row.getEntity());
          }
          auto list = b.initMissing(static_cast<unsigned>(missing.size()));
          for (unsigned i = 0; i < missing.size(); ++i) list.set(i, missing[i]);
        },
        128);
  }

  // What the model takes; asked once for each set of ready replicas.
  Task<Result<View<ModelDescription>>> inputs_of(Context& ctx, std::string model, SendOptions options, Instant deadline) {
    const auto names = options_.view->get()->ready_with_prefix("serving/replica/" + model + "/");
    auto& known = described_[model];
    if (known.description && known.replicas == names) co_return known.description.open<ModelDescription>();
    const auto question = Message::build<DescribeModel>([&](DescribeModel::Builder b) { b.setModel(model); });
    auto routed = route<ModelDescription>(ctx, model, 0, question, options, deadline);
    auto answer = co_await std::move(routed);
    if (answer) described_[model] = Described{names, answer->message()};
    co_return answer;
  }

  static double number(Value::Reader value) {
    switch (value.which()) {
      case Value::FLOAT32:
        return value.getFloat32();
      case Value::FLOAT64:
        return value.getFloat64();
      case Value::INT64:
        return static_cast<double>(value.getInt64());
      case Value::BOOL:
        return value.getBool() ? 1 : 0;
      default:
        return std::numeric_limits<double>::quiet_NaN();
    }
  }

  static std::string as_string(Value::Reader value) {
    switch (value.which()) {
      case Value::STRING:
        return std::string(text(value.getString()));
      case Value::BOOL:
        return value.getBool() ? "true" : "false";
      case Value::INT64:
        return std::to_string(value.getInt64());
      default:
        return {};
    }
  }

  template <class T>
  static void write_numbers(Tensor::Builder tensor, Features::Reader found, unsigned field) {
    const auto rows = found.getRows();
    auto content = tensor.initContent(rows.size() * sizeof(T));
    for (unsigned r = 0; r < rows.size(); ++r) {
      const auto value = rows[r].getStatus() == RowStatus::PRESENT ? static_cast<T>(number(rows[r].getValues()[field]))
                                                                   : std::numeric_limits<T>::quiet_NaN();
      std::memcpy(content.begin() + r * sizeof(T), &value, sizeof(T));
    }
  }

  static Result<Message> infer_of(const std::string& model, std::string_view id, ModelDescription::Reader description,
                                  Features::Reader found) {
    const auto fields = found.getFields();
    const auto inputs = description.getInputs();
    const auto rows = found.getRows();
    std::vector<unsigned> positions;
    for (const auto input : inputs) {
      unsigned f = 0;
      while (f < fields.size() && text(fields[f].getName()) != text(input.getName())) ++f;
      if (f == fields.size())
        return error(ErrorCode::conflict, format("the model takes '{}', which the feature view does not have", text(input.getName())));
      const auto type = input.getType();
      if (type != DataType::FP32 && type != DataType::FP64 && type != DataType::BYTES)
        return error(ErrorCode::unimplemented, format("input '{}' cannot be filled from features", text(input.getName())));
      positions.push_back(f);
    }
    return Message::build<Infer>(
        [&](Infer::Builder b) {
          b.setModel(model);
          b.setId(std::string(id));
          b.setByEntity(true);
          auto tensors = b.initInputs(inputs.size());
          for (unsigned i = 0; i < inputs.size(); ++i) {
            tensors[i].setName(inputs[i].getName());
            tensors[i].setType(inputs[i].getType());
            auto shape = tensors[i].initShape(inputs[i].getShape().size());
            for (unsigned d = 0; d < shape.size(); ++d) shape.set(d, d == 0 ? rows.size() : 1);
            if (inputs[i].getType() == DataType::FP32) {
              write_numbers<float>(tensors[i], found, positions[i]);
            } else if (inputs[i].getType() == DataType::FP64) {
              write_numbers<double>(tensors[i], found, positions[i]);
            } else {
              auto strings = tensors[i].initStrings(rows.size());
              for (unsigned r = 0; r < rows.size(); ++r) {
                const auto value = rows[r].getStatus() == RowStatus::PRESENT ? as_string(rows[r].getValues()[positions[i]]) : std::string();
                strings.set(r, data(as_bytes(value)));
              }
            }
          }
        },
        256 + 32 * inputs.size());
  }

  // ---- counting -----------------------------------------------------------------------------------------------------------------

  const Traffic& traffic(Context& ctx, const std::string& model) {
    const auto known = traffic_.find(model);
    if (known != traffic_.end()) return known->second;
    return traffic_.emplace(model, traffic_of(ctx.metrics(), model)).first->second;
  }

  // Only deployments that exist are counted by name: what clients invent must not fill the registry.
  void note(Context& ctx, const std::string& model, Instant begin, const Error* why) {
    const auto view = options_.view->get();
    if (!view || !view->deployment(model)) return;
    const auto& t = traffic(ctx, model);
    t.requests->add();
    t.latency->record(ctx.now() - begin);
    if (why != nullptr) count_failure(t, why->code);
  }

  void note_run(Context& ctx, const std::string& model, InferReply::Reader reply) {
    const auto& t = traffic(ctx, model);
    t.queue->record(Duration(static_cast<Duration::rep>(reply.getQueueNs())));
    t.compute->record(Duration(static_cast<Duration::rep>(reply.getComputeNs())));
    t.rows->add(reply.getRows());
    if (reply.getUnknown() != 0) t.unknown->add(reply.getUnknown());
    if (reply.getBatchRows() != 0) t.runs->add(static_cast<double>(reply.getRows()) / reply.getBatchRows());
    t.last->set(static_cast<double>(ctx.wall().unix_ns) * 1e-9);
    t.version->set(static_cast<double>(reply.getVersion()));
  }

  struct Described {
    std::vector<std::string> replicas;
    Message description;
  };

  RouterOptions options_;
  std::unordered_map<std::string, std::uint32_t> under_way_;  // requests, by replica
  std::map<std::string, Described> described_;
  std::map<std::string, Traffic> traffic_;
};

}  // namespace

ChildSpec router(RouterOptions options) {
  ChildSpec spec;
  spec.id = "serving/router";
  spec.name = spec.id;
  spec.make = [options] { return std::make_unique<Router>(options); };
  return spec;
}

}  // namespace falaj::serving
