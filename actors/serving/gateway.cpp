#include "actors/serving/gateway.hpp"

#include <algorithm>
#include <charconv>
#include <optional>

#include "actors/serving/oip.hpp"
#include "actors/serving/stats.hpp"
#include "actors/serving/token_book.hpp"
#include "actors/serving/traffic.hpp"
#include "messages/catalog.hpp"
#include "messages/control.capnp.h"
#include "messages/json.hpp"
#include "messages/serving.capnp.h"
#include "runtime/base/format.hpp"
#include "runtime/base/random.hpp"
#include "runtime/net/http.hpp"
#include "runtime/net/http/json_writer.hpp"
#include "runtime/net/links.hpp"

namespace falaj::serving {

using falaj::Scope;
using falaj::ScopeRef;
using net::HttpRequest;
using net::HttpResponder;
using net::HttpResponse;

namespace {

constexpr auto kRequestTimeout = std::chrono::seconds(5);
constexpr auto kTimeoutMax = std::chrono::seconds(60);  // of a client's wish
constexpr std::size_t kLargeBody = 1U << 20;
constexpr std::size_t kEntitiesMax = 4096;  // of one prediction
constexpr std::string_view kExtensions[] = {"binary_tensor_data", "classification",  "model_configuration", "model_repository",
                                            "parameters",         "schedule_policy", "statistics"};
// Calls of Triton's that clients probe for.
constexpr std::string_view kUnserved[] = {"systemsharedmemory", "cudasharedmemory", "trace", "logging"};

// "/base/v2/models/m/versions/3/infer" -> {"models", "m", "versions", "3", "infer"}; the base path is passed over.
std::optional<std::vector<std::string_view>> segments_after(std::string_view path, std::string_view root) {
  std::vector<std::string_view> out;
  bool found = false;
  std::size_t at = 0;
  while (at < path.size()) {
    const auto end = std::min(path.find('/', at + 1), path.size());
    const auto segment = path.substr(at + 1, end - at - 1);
    if (found) {
      out.push_back(segment);
    } else if (segment == root) {
      found = true;
    }
    at = end;
  }
  if (!found) return std::nullopt;
  if (!out.empty() && out.back().empty()) out.pop_back();  // a slash at the end
  return out;
}

struct ModelPath {
  std::string_view model;
  std::uint64_t version = 0;
  std::string_view verb;  // "", "ready", "infer", "config", "stats"
};

std::optional<ModelPath> parse_model_path(const std::vector<std::string_view>& segments) {
  if (segments.size() < 2 || segments[0] != "models" || segments[1].empty()) return std::nullopt;
  ModelPath path{segments[1], 0, {}};
  std::size_t next = 2;
  if (segments.size() > next + 1 && segments[next] == "versions") {
    const auto digits = segments[next + 1];
    if (digits.empty() || std::from_chars(digits.data(), digits.data() + digits.size(), path.version).ptr != digits.data() + digits.size())
      return std::nullopt;
    next += 2;
  }
  if (segments.size() == next + 2 && segments[next] == "trace") return ModelPath{path.model, path.version, "trace"};
  if (segments.size() > next + 1) return std::nullopt;
  if (segments.size() == next + 1) path.verb = segments[next];
  return path;
}

HttpResponse not_found() { return HttpResponse::json(404, R"({"error":"Not Found"})"); }
HttpResponse unserved() { return HttpResponse::json(501, R"({"error":"not served here; models are loaded and unloaded by deployments"})"); }
HttpResponse wrong_method() { return HttpResponse::json(405, R"({"error":"Method Not Allowed"})"); }

}  // namespace

// One request on its way: where its answer goes, for whom it is, and what its answer says of its trace.
struct Gateway::Exchange {
  HttpResponder responder;
  TraceContext trace;
  std::string request_id;
  ScopeRef scope;
  bool is_tls = false;

  void respond(HttpResponse response) {
    response.headers.emplace_back("traceparent", traceparent(trace));
    if (!request_id.empty()) response.headers.emplace_back("X-Request-Id", std::move(request_id));
    responder.respond(std::move(response));
  }
  void respond(const Error& why) { respond(error_response(why)); }
};

struct Gateway::State {
  GatewayOptions options;
  TokenFile tokens;
  ScopeRef anonymous;
  std::unique_ptr<net::HttpServer> clear;
  std::unique_ptr<net::HttpServer> tls;

  explicit State(GatewayOptions o) : options(std::move(o)), tokens(options.tokens) {
    auto nobody = std::make_shared<Scope>();
    nobody->principal = format("spiffe://{}/anonymous", options.cluster);
    anonymous = std::move(nobody);
  }

  // ---- who asks --------------------------------------------------------------------------------------------------------------------

  // Null: nobody whom this door knows.
  [[nodiscard]] Result<std::string> principal_of(const HttpRequest& request, bool with_tls) {
    if (const auto token = request.bearer_token(); !token.empty()) {
      FALAJ_ASSIGN(const auto path, tokens.principal_of(token, options.host->clock().wall()));
      return format("spiffe://{}/{}", options.cluster, path);
    }
    if (request.principal) return request.principal->uri();
    if (with_tls) return error(ErrorCode::denied, "a client certificate of this cluster or a bearer token is needed");
    return anonymous->principal;
  }

  [[nodiscard]] Result<ScopeRef> scope_of(const HttpRequest& request, bool with_tls) {
    FALAJ_ASSIGN(auto principal, principal_of(request, with_tls));
    const auto tenant = request.header("Falaj-Tenant");
    const auto purpose = request.header("Falaj-Purpose");
    const auto key = request.header("Idempotency-Key");
    if (tenant.empty() && purpose.empty() && key.empty() && principal == anonymous->principal) return anonymous;
    auto scope = std::make_shared<Scope>();
    scope->principal = std::move(principal);
    scope->tenant = tenant;
    scope->purpose = purpose;
    scope->idempotency_key = key;
    return ScopeRef(std::move(scope));
  }

  Exchange open(const HttpRequest& request, HttpResponder responder, bool with_tls) const {
    static thread_local Random random(entropy_seed());
    Exchange exchange;
    exchange.responder = std::move(responder);
    const auto parent = parse_traceparent(request.header("traceparent"));
    exchange.trace = parent ? child_of(*parent, random) : new_trace(random);
    exchange.request_id = request.header("X-Request-Id");
    exchange.is_tls = with_tls;
    return exchange;
  }

  // ---- asking the actors -----------------------------------------------------------------------------------------------------------

  // One ask to an actor of this node; `write` turns its reply into the response, on a host thread.
  template <class Reply, class Write>
  void ask(std::string_view actor, Message message, SendOptions send, Exchange exchange, Write write) {
    ask_any(options.host->find(actor), std::move(message), std::move(send), std::move(exchange),
            [write = std::move(write)](const Message& answer) {
              const auto view = answer.open<Reply>();
              return view ? write(**view) : error_response(view.error());
            });
  }

  template <class Write>
  void ask_any(const ActorRef& actor, Message message, SendOptions send, Exchange exchange, Write write) {
    if (send.timeout <= Duration::zero()) send.timeout = kRequestTimeout;
    send.timeout = std::min<Duration>(send.timeout, kTimeoutMax);
    send.trace = exchange.trace;
    options.host->ask(actor, std::move(message), send,
                      [exchange = std::move(exchange), write = std::move(write)](Result<Message> answer) mutable {
                        exchange.respond(answer ? write(*answer) : error_response(answer.error()));
                      });
  }

  void infer(const HttpRequest& request, Exchange exchange, const ModelPath& path) {
    static thread_local net::JsonReader kept;  // its memory follows the largest body: large ones get a reader of their own
    std::optional<net::JsonReader> once;
    if (request.body.size() > kLargeBody) once.emplace();
    auto decoded =
        decode_infer(once ? *once : kept, request.body, request.header("Inference-Header-Content-Length"), path.model, path.version);
    if (!decoded) return exchange.respond(decoded.error());
    SendOptions send{.timeout = decoded->timeout, .scope = exchange.scope};
    ask<messages::InferReply>(
        "serving/router", std::move(decoded->message), send, std::move(exchange),
        [format = std::move(decoded->format)](messages::InferReply::Reader reply) { return encode_infer(reply, format); });
  }

  struct Question {
    std::vector<std::string> entities;
    std::string purpose;
    std::string id;
  };

  static Result<Question> read_question(ByteView body) {
    net::JsonReader reader;
    FALAJ_ASSIGN(const auto root, reader.parse(body));
    const auto entities = root.find("entities");
    if (!entities) return invalid("'entities' is missing: send {\"entities\": [\"...\"]}");
    Question question;
    if (auto read = entities->flatten(question.entities, kEntitiesMax); !read) return within("entities", read.error());
    for (const auto& [key, to] : {std::pair{"purpose", &question.purpose}, std::pair{"id", &question.id}}) {
      const auto given = root.find(key);
      if (!given) continue;
      const auto value = given->as_string();
      if (!value) return within(key, value.error());
      *to = *value;
    }
    return question;
  }

  void predict(const HttpRequest& request, Exchange exchange, std::string_view model) {
    const auto question = read_question(request.body);
    if (!question) return exchange.respond(question.error());
    if (!question->purpose.empty()) {
      auto scope = std::make_shared<Scope>(*exchange.scope);
      scope->purpose = question->purpose;
      exchange.scope = std::move(scope);
    }
    auto message = Message::build<messages::Predict>([&](messages::Predict::Builder b) {
      b.setModel(std::string(model));
      b.setId(question->id);
      auto names = b.initEntities(static_cast<unsigned>(question->entities.size()));
      for (unsigned i = 0; i < names.size(); ++i) names.set(i, question->entities[i]);
    });
    SendOptions send{.scope = exchange.scope};
    ask<messages::PredictReply>("serving/router", std::move(message), send, std::move(exchange), write_prediction);
  }

  static HttpResponse write_prediction(messages::PredictReply::Reader reply) {
    net::JsonWriter w;
    w.begin_object().key("model_name").string(text(reply.getModel())).key("model_version").string(std::to_string(reply.getVersion()));
    if (reply.getId().size() > 0) w.key("id").string(text(reply.getId()));
    w.key("outputs").raw(encode_outputs_json(reply.getOutputs())).key("missing").begin_array();
    for (const auto entity : reply.getMissing()) w.string(text(entity));
    w.end_array().end_object();
    return HttpResponse::json(200, w.text());
  }

  void describe(Exchange exchange, const ModelPath& path) {
    auto message =
        Message::build<messages::DescribeModel>([&](messages::DescribeModel::Builder b) { b.setModel(std::string(path.model)); });
    SendOptions send{.scope = exchange.scope};
    ask<messages::ModelDescription>("serving/router", std::move(message), send, std::move(exchange),
                                    [config = path.verb == "config", version = path.version](messages::ModelDescription::Reader d) {
                                      if (version != 0 && !serves(d, version)) return version_not_found(version);
                                      return HttpResponse::json(200, config ? encode_config(d) : encode_metadata(d));
                                    });
  }

  static bool serves(messages::ModelDescription::Reader d, std::uint64_t version) {
    for (const auto one : d.getVersions()) {
      if (one == version) return true;
    }
    return false;
  }
  static HttpResponse version_not_found(std::uint64_t version) {
    return error_response(error(ErrorCode::not_found, format("version {} is not served", version)));
  }

  // Not ready is 400 in this dialect, whatever the reason.
  void model_ready(Exchange exchange, const ModelPath& path) {
    const auto view = options.view->get();
    if (!view || !is_ready(*view, path.model))
      return exchange.respond(HttpResponse::json(400, format(R"({{"error":"no replica of this model is ready"}})")));
    auto message =
        Message::build<messages::DescribeModel>([&](messages::DescribeModel::Builder b) { b.setModel(std::string(path.model)); });
    SendOptions send{.timeout = std::chrono::milliseconds(500), .scope = exchange.scope};
    ask<messages::ModelDescription>("serving/router", std::move(message), send, std::move(exchange),
                                    [model = std::string(path.model), version = path.version](messages::ModelDescription::Reader d) {
                                      if (version != 0 && !serves(d, version)) return version_not_found(version);
                                      net::JsonWriter w;
                                      w.begin_object().key("name").string(model).key("ready").boolean(true).end_object();
                                      return HttpResponse::json(200, w.text());
                                    });
  }

  // Any message with a verb to any actor: "control/membership/GetStatus". The actor is one of this node or of the cluster's directory, or
  // lives on the node that the header Falaj-Node names.
  void message(const HttpRequest& request, Exchange exchange, std::string_view path) {
    const auto slash = path.rfind('/');
    if (slash == std::string_view::npos || slash == 0) return exchange.respond(not_found());
    const auto name = path.substr(slash + 1);
    const auto schema = find_message(name);
    // One without a verb is for nodes only, and what a gateway sends on counts as a node's.
    if (!schema || verb_of(*schema).empty()) {
      const auto why = format("no message '{}' that a principal may send; 'falaj call --help' says how to list them", name.substr(0, 128));
      return exchange.respond(error(ErrorCode::not_found, why));
    }
    auto body = message_from_json(*schema, request.body.empty() ? "{}" : as_text(request.body));
    if (!body) return exchange.respond(body.error());
    SendOptions send{.scope = exchange.scope};
    if (const auto given = request.header("Falaj-Timeout-Ms"); !given.empty()) {
      std::uint32_t ms = 0;
      if (std::from_chars(given.data(), given.data() + given.size(), ms).ptr != given.data() + given.size() || ms == 0)
        return exchange.respond(invalid(format("header Falaj-Timeout-Ms: '{}' is no number of milliseconds", given.substr(0, 32))));
      send.timeout = std::chrono::milliseconds(ms);
    }
    const auto actor = std::string(path.substr(0, slash));
    const auto node = request.header("Falaj-Node");
    const auto to = node.empty() ? options.host->find(actor) : options.host->at(ActorAddress{node_id(node), {}, {}, actor});
    ask_any(to, std::move(body).value(), send, std::move(exchange), [](const Message& answer) {
      const auto json = message_to_json(answer, false);
      return json ? HttpResponse::json(200, *json) : error_response(json.error());
    });
  }

  // The token is the right: the message goes to the authority as this node's own.
  void join(const HttpRequest& request, Exchange exchange) {
    if (!exchange.is_tls) return exchange.respond(HttpResponse::json(404, R"({"error":"joining is served over HTTPS only"})"));
    Status read;
    auto message =
        Message::build<messages::Join>([&](messages::Join::Builder b) { read = from_json<messages::Join>(as_text(request.body), b); });
    if (!read) return exchange.respond(read.error());
    ask<messages::Joined>("control/authority", std::move(message), {}, std::move(exchange),
                          [](messages::Joined::Reader joined) { return HttpResponse::json(200, to_json(joined)); });
  }

  // ---- routes ------------------------------------------------------------------------------------------------------------------------

  HttpResponse server_metadata() const {
    net::JsonWriter w;
    w.begin_object().key("name").string("falaj").key("version").string(options.version).key("extensions").begin_array();
    for (const auto extension : kExtensions) w.string(extension);
    w.end_array().end_object();
    return HttpResponse::json(200, w.text());
  }

  HttpResponse health(bool good, std::string_view key) const {
    return HttpResponse::json(good ? 200 : 400, format("{{\"{}\":{}}}", key, good));
  }

  HttpResponse index(const HttpRequest& request) const {
    bool only_ready = false;
    if (!request.body.empty()) {
      net::JsonReader reader;
      const auto root = reader.parse(request.body);
      if (!root) return error_response(root.error());
      if (const auto ready = root->find("ready")) only_ready = ready->as_bool().value_or(false);
    }
    return HttpResponse::json(200, repository_index(options.view->get().get(), only_ready));
  }

  HttpResponse model_statistics(std::string_view model) const {
    const auto view = options.view->get();
    if (!model.empty() && (!view || !view->deployment(model)))
      return error_response(error(ErrorCode::not_found, format("no deployment '{}'", model.substr(0, 128))));
    return HttpResponse::json(200, statistics(view.get(), options.host->metrics(), model));
  }

  HttpResponse prometheus() const {
    auto& registry = options.host->metrics();
    const auto aliases = triton_metrics(options.view->get().get(), registry);
    auto response = HttpResponse::text(200, registry.prometheus() + aliases);
    response.content_type = "text/plain; version=0.0.4";
    return response;
  }

  void models(const HttpRequest& request, Exchange exchange, const ModelPath& path) {
    const bool get = request.method == "GET";
    if (path.verb == "infer") {
      if (request.method != "POST") return exchange.respond(wrong_method());
      return infer(request, std::move(exchange), path);
    }
    if (path.verb == "trace") return exchange.respond(unserved());
    if (!get) return exchange.respond(wrong_method());
    if (path.verb == "ready") return model_ready(std::move(exchange), path);
    if (path.verb == "stats") return exchange.respond(model_statistics(path.model));
    if (path.verb.empty() || path.verb == "config") return describe(std::move(exchange), path);
    exchange.respond(not_found());
  }

  void oip(const HttpRequest& request, Exchange exchange, const std::vector<std::string_view>& segments) {
    const bool get = request.method == "GET";
    const auto is = [&](std::initializer_list<std::string_view> wanted) { return std::ranges::equal(segments, wanted); };
    if (segments.empty()) return exchange.respond(get ? server_metadata() : wrong_method());
    if (is({"health", "live"})) return exchange.respond(get ? health(true, "live") : wrong_method());
    if (is({"health", "ready"})) {
      const auto view = options.view->get();
      return exchange.respond(get ? health(view && all_ready(*view), "ready") : wrong_method());
    }
    if (is({"repository", "index"})) return exchange.respond(request.method == "POST" ? index(request) : wrong_method());
    if (segments[0] == "repository" || std::ranges::find(kUnserved, segments[0]) != std::end(kUnserved))
      return exchange.respond(unserved());
    if (is({"models", "stats"})) return exchange.respond(get ? model_statistics({}) : wrong_method());
    const auto path = parse_model_path(segments);
    if (!path) return exchange.respond(not_found());
    models(request, std::move(exchange), *path);
  }

  void handle(const HttpRequest& request, HttpResponder responder, bool with_tls) {
    const Host::Lent lent(*options.host);
    auto exchange = open(request, std::move(responder), with_tls);
    const std::string_view path = request.path;
    if (path == "/v1/join") {
      if (request.method != "POST") return exchange.respond(wrong_method());
      return join(request, std::move(exchange));
    }
    if (path == "/v2/health/live" && request.method == "GET") return exchange.respond(health(true, "live"));
    auto scope = scope_of(request, with_tls);
    if (!scope) {
      auto response = error_response(scope.error());
      response.status = 401;
      response.headers.emplace_back("WWW-Authenticate", "Bearer");
      return exchange.respond(std::move(response));
    }
    exchange.scope = std::move(scope).value();
    if (path == "/metrics") return exchange.respond(request.method == "GET" ? prometheus() : wrong_method());
    constexpr std::string_view kPredict = "/v1/predict/";
    if (path.starts_with(kPredict) && path.size() > kPredict.size()) {
      if (request.method != "POST") return exchange.respond(wrong_method());
      return predict(request, std::move(exchange), path.substr(kPredict.size()));
    }
    constexpr std::string_view kActors = "/v1/actors/";
    if (path.starts_with(kActors)) {
      if (request.method != "POST") return exchange.respond(wrong_method());
      return message(request, std::move(exchange), path.substr(kActors.size()));
    }
    const auto segments = segments_after(path, "v2");
    if (!segments) return exchange.respond(not_found());
    oip(request, std::move(exchange), *segments);
  }

  Status serve(const std::string& where, bool with_tls) {
    FALAJ_ASSIGN(const auto address, net::parse_peer_address("http", where));
    net::HttpOptions http;
    http.host = address.host;
    http.port = address.port;
    http.name = with_tls ? "https" : "http";
    if (with_tls) http.identity = options.identity;
    auto server = net::HttpServer::create(
        std::move(http), options.host->clock(), options.host->metrics(),
        [this, with_tls](const HttpRequest& request, HttpResponder responder) { handle(request, std::move(responder), with_tls); });
    if (!server) return within(where, server.error());
    (with_tls ? tls : clear) = std::move(server).value();
    return {};
  }
};

Gateway::Gateway(std::unique_ptr<State> state) : state_(std::move(state)) {}
Gateway::~Gateway() { stop(); }

Result<std::unique_ptr<Gateway>> Gateway::start(GatewayOptions options) {
  std::unique_ptr<Gateway> gateway(new Gateway(std::make_unique<State>(std::move(options))));
  auto& state = *gateway->state_;
  if (!state.options.tokens.empty()) FALAJ_TRY(state.tokens.load());
  if (!state.options.http.empty()) FALAJ_TRY(state.serve(state.options.http, false));
  if (!state.options.https.empty()) FALAJ_TRY(state.serve(state.options.https, true));
  return gateway;
}

void Gateway::stop() {
  if (state_->clear) state_->clear->stop();
  if (state_->tls) state_->tls->stop();
}

Status Gateway::reload_identity(const net::Identity& identity) { return state_->tls ? state_->tls->reload_identity(identity) : Status{}; }

std::uint16_t Gateway::http_port() const { return state_->clear ? state_->clear->port() : 0; }

void Gateway::fill_stats(messages::NodeStats::Builder into) const {
  const auto view = state_->options.view->get();
  if (!view) return;
  std::vector<std::string> names;
  for (const auto resource : view->view().getResources()) {
    if (resource.isDeployment()) names.emplace_back(text(resource.getDeployment().getName()));
  }
  auto list = into.initRequests(static_cast<unsigned>(names.size()));
  for (unsigned i = 0; i < names.size(); ++i) {
    const auto traffic = traffic_of(state_->options.host->metrics(), names[i]);
    list[i].setDeployment(names[i]);
    list[i].setRequests(traffic.requests->value());
    list[i].setFailed(traffic.failed->value());
    list[i].setP50Us(traffic.latency->quantile_seconds(0.5) * 1e6);
    list[i].setP99Us(traffic.latency->quantile_seconds(0.99) * 1e6);
  }
}

}  // namespace falaj::serving
