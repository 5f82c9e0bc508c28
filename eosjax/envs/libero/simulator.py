"""LIBERO's simulator of one task: the one module that imports LIBERO, robosuite and MuJoCo. It runs in processes of its own.

Needs the extra `libero`; the original LIBERO has the same modules and serves as well. Pictures need OpenGL without a display: EGL, or
OSMesa with MUJOCO_GL=osmesa.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from eosjax.envs.libero.scene import Scene, View
from eosjax.envs.libero.tasks import Task, category, read_goal
from eosjax.envs.worlds import WorldError

SIZE = 256  # height and width of the pictures, as in the published datasets
_CAMERAS = ("agentview", "robot0_eye_in_hand")
_SETTLE = np.array([0, 0, 0, 0, 0, 0, -1.0])  # things start in the air
_SETTLING = 10  # steps
_SLIPPERY = (1e-3, 1e-5, 1e-5)  # friction of fingers and thing: sliding, torsion, rolling
_HIDDEN = 0  # group of the collision geometry


def check_libero() -> None:
    """Raises `WorldError` unless LIBERO can be imported."""
    missing = [name for name in ("libero", "robosuite", "mujoco") if importlib.util.find_spec(name) is None]
    if missing:
        raise WorldError(f"--env libero_…: needs the extra `libero`: pip install 'eosjax[libero]' (not installed: {', '.join(missing)})")
    os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ.setdefault("LP_NUM_THREADS", "1")  # of Mesa's renderer on a CPU: there is a process a core


def find_tasks(suite: str, numbers: tuple[int, ...]) -> list[Task]:
    """The tasks of a suite with these numbers. Raises `WorldError` where LIBERO is not installed."""
    with _quiet():
        benchmark, folder = _suite(suite), _folder("bddl_files")
    found = []
    for number in numbers:
        task = benchmark.get_task(number)
        path = folder / task.problem_folder / task.bddl_file
        found.append(Task(suite, number, task.language, str(path), read_goal(path.read_text(encoding="utf-8"))))
    return found


def start_states(task: Task) -> np.ndarray:
    """f64 [n s]: the start states that the benchmark has for a task, flattened states of the simulator."""
    with _quiet():
        suite = _suite(task.suite)
        found = suite.get_task(task.number)
        path = _folder("init_states") / found.problem_folder / found.init_states_file
        return read_states(path) if path.is_file() else np.asarray(suite.get_task_init_states(task.number))


def read_states(path: Path) -> np.ndarray:
    """An array that `torch.save` wrote, as in the original LIBERO, whose `torch.load` refuses it from PyTorch 2.6 on."""
    with zipfile.ZipFile(path) as archive:
        (name,) = [each for each in archive.namelist() if each.endswith("data.pkl")]
        return np.asarray(pickle.loads(archive.read(name)))


class Simulator:
    """The simulator of one task.

    Args:
      task: of a suite.
      plain: pictures without reflections and antialiasing. They take half the time on a CPU, and differ from LIBERO's.
    """

    def __init__(self, task: Task, plain: bool) -> None:
        check_libero()
        with _quiet(), _explained():
            wrapper = importlib.import_module("libero.libero.envs.env_wrapper")
            self._control = wrapper.ControlEnv(
                bddl_file_name=task.bddl,
                use_camera_obs=False,
                has_renderer=False,
                has_offscreen_renderer=False,
                hard_reset=False,
                ignore_done=True,
            )
        self._task, self._plain = task, plain
        self._renderer: Any = None
        self._base = self._control.env
        model = self._model
        names = self._base.robots[0].gripper.important_geoms
        geoms = lambda names: np.array([model.geom(name).id for name in names])
        self._fingers = [geoms(names[f"{side}_finger"] + names[f"{side}_fingerpad"]) for side in ("left", "right")]
        thing = self._base.objects_dict[task.goal.thing]
        self._thing_geoms, self._thing = geoms(thing.contact_geoms), model.body(thing.root_body).id
        self._site = task.goal.target if task.goal.target in {model.site(site).name for site in range(model.nsite)} else None
        self._friction = model.geom_friction.copy()
        self._seen: dict[str, Any] = {}

    @property
    def _model(self) -> Any:
        return self._control.sim.model._model

    @property
    def _data(self) -> Any:
        return self._control.sim.data._data

    def reset(self, seed: int, start: np.ndarray | None) -> Scene:
        """Sets up the scene, from a state or at random, and lets everything come to rest.

        Fixtures are placed by NumPy's global generator and are no part of the state: the seed decides them.
        """
        before = np.random.get_state()  # noqa: NPY002  # LIBERO draws from it
        try:
            with _quiet():
                for _ in range(2):  # what lies on a fixture is placed where the fixture was before
                    self._control.seed(seed)
                    self._control.reset()
                self._base.robots[0].gripper.current_action[:] = 0.0  # a soft reset keeps the last command
                if start is not None:
                    self._control.set_init_state(start)
        finally:
            np.random.set_state(before)  # noqa: NPY002
        self.slip(False)
        for _ in range(_SETTLING):
            self.step(_SETTLE)
        return self._scene()

    def step(self, action: np.ndarray) -> None:
        """One control step."""
        self._seen = self._control.step(np.asarray(action, np.float64))[0]

    def slip(self, slippery: bool) -> None:
        """From the next step on the thing slips out of the fingers, or no longer."""
        self._model.geom_friction[:] = self._friction
        if slippery:
            self._model.geom_friction[np.concatenate([self._thing_geoms, *self._fingers])] = _SLIPPERY

    def view(self) -> View:
        """What is where."""
        data, model = self._data, self._model
        pairs = data.contact.geom[: data.ncon]
        ours = [pairs[np.isin(pairs[:, side], self._thing_geoms), 1 - side] for side in (0, 1)]
        touching = [bool(np.isin(np.concatenate(ours), finger).any()) for finger in self._fingers]
        fingers = self._seen["robot0_gripper_qpos"]
        return View(
            hand=np.array(self._seen["robot0_eef_pos"], np.float64),
            turn=_matrix(self._seen["robot0_eef_quat"]),
            gap=float(fingers[0] - fingers[1]),
            thing=data.xpos[self._thing].copy(),
            axes=data.xmat[self._thing].reshape(3, 3).copy(),
            target=self._target(model, data),
            held=all(touching),
            touched=any(touching),
            success=bool(self._control.check_success()),
        )

    def robot_state(self) -> np.ndarray:
        """f32 [8]: position of the hand, its rotation (axis times angle), and the two fingers."""
        rotation = _axis_angle(self._seen["robot0_eef_quat"])
        return np.concatenate([self._seen["robot0_eef_pos"], rotation, self._seen["robot0_gripper_qpos"]]).astype(np.float32)

    def joints(self) -> np.ndarray:
        """f32 [7]."""
        return np.asarray(self._seen["robot0_joint_pos"], np.float32)

    def state(self) -> np.ndarray:
        """f64 [s]: the flattened state. With the seed of `reset`, it decides the pictures."""
        return self._control.get_sim_state().copy()

    def show(self, state: np.ndarray) -> None:
        """Puts everything where it was, for `pictures`. Those of a running episode are one step of the physics (2 ms) behind its state."""
        self._control.set_state(state)
        self._control.sim.forward()

    def pictures(self) -> list[np.ndarray]:
        """What the third-person and the wrist camera see, each u8 [256 256 3], turned as in the published datasets."""
        if self._renderer is None:
            self._renderer = self._make_renderer()
        found = []
        groups = self._model.geom_group.copy()
        for camera in _CAMERAS:
            if self._plain:  # a reflection may show what is outside
                self._model.geom_group[~_inside(self._model, self._data, camera)] = _HIDDEN
            self._renderer.update_scene(self._data, camera, self._options)
            self._model.geom_group[:] = groups
            found.append(np.ascontiguousarray(self._renderer.render()[:, ::-1]))
        return found

    def _make_renderer(self) -> Any:
        with _explained():
            mujoco = importlib.import_module("mujoco")
            if self._plain:
                self._model.vis.quality.offsamples = 0
                self._model.mat_reflectance[:] = 0.0
            self._options = mujoco.MjvOption()
            self._options.geomgroup[_HIDDEN] = 0
            return mujoco.Renderer(self._model, SIZE, SIZE)

    def close(self) -> None:
        """Frees what it holds."""
        if self._renderer is not None:
            self._renderer.close()
        self._control.close()

    def _target(self, model: Any, data: Any) -> np.ndarray:
        if self._site is not None:
            return data.site(self._site).xpos.copy()
        return data.xpos[model.body(self._base.objects_dict[self._task.goal.target].root_body).id].copy()

    def _scene(self) -> Scene:
        model, data = self._model, self._data
        low, high = _bounds(model, [geom for geom in range(model.ngeom) if model.geom_bodyid[geom] == self._thing])
        axes = data.xmat[self._thing].reshape(3, 3)
        goal = self._task.goal
        return Scene(
            kind=category(goal.thing),
            low=low,
            high=high,
            start=data.xpos[self._thing].copy(),
            bottom=float(np.where(axes[2] > 0, low, high) @ axes[2]),
            target=self._target(model, data),
            deep=goal.target.endswith("contain_region") or "bowl" in goal.target,
            obstacles=_obstacles(model, data, goal.thing),
        )


def _suite(suite: str) -> Any:
    check_libero()
    try:
        with _quiet():
            return importlib.import_module("libero.libero.benchmark").get_benchmark_dict()[suite]()
    except (ImportError, EOFError) as error:  # the original asks where its data are when it is imported first
        said = f"{type(error).__name__}: {error}"
        raise WorldError(f"--env {suite}: LIBERO cannot be imported: {said}; try: python -c 'import libero.libero'") from error


def _folder(of: str) -> Path:
    return Path(importlib.import_module("libero.libero").get_libero_path(of))


def _bounds(model: Any, geoms: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """f64 [3] each: the corners round the collision geometry of a body, in its own frame."""
    lows, highs = [], []
    for geom in geoms:
        if not (model.geom_contype[geom] or model.geom_conaffinity[geom]):
            continue
        turn = _matrix(np.roll(model.geom_quat[geom], -1))
        mesh = model.geom_dataid[geom]
        if model.geom_type[geom] == _MESH:
            first = model.mesh_vertadr[mesh]
            points = model.mesh_vert[first : first + model.mesh_vertnum[mesh]]
        else:
            middle, half = model.geom_aabb[geom, :3], model.geom_aabb[geom, 3:]
            points = middle + half * np.stack(np.meshgrid(*[[-1, 1]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
        points = points @ turn.T + model.geom_pos[geom]
        lows.append(points.min(axis=0))
        highs.append(points.max(axis=0))
    return np.min(lows, axis=0), np.max(highs, axis=0)


def _obstacles(model: Any, data: Any, thing: str) -> np.ndarray:
    """f64 [n 2 3]: the corners round everything that can be hit, except the robot, the thing, and planes."""
    found = []
    for geom in range(model.ngeom):
        name = model.body(model.geom_bodyid[geom]).name
        solid = model.geom_contype[geom] or model.geom_conaffinity[geom]
        if not solid or model.geom_type[geom] == _PLANE or name.startswith(("robot", "gripper", "mount", thing)):
            continue
        turn, box = data.geom_xmat[geom].reshape(3, 3), model.geom_aabb[geom]
        middle, half = data.geom_xpos[geom] + turn @ box[:3], np.abs(turn) @ box[3:]
        found.append([middle - half, middle + half])
    return np.array(found).reshape(-1, 2, 3)


def _inside(model: Any, data: Any, camera: str) -> np.ndarray:
    """bool [g]: the geometry whose bounding sphere reaches into the picture of a camera, and planes. The rest costs time unseen."""
    seen_by = data.camera(camera)
    x, y, z = ((data.geom_xpos - seen_by.xpos) @ seen_by.xmat.reshape(3, 3)).T  # the camera looks along -z
    radius, slope = model.geom_rbound, np.tan(np.radians(model.camera(camera).fovy[0]) / 2)
    outside = np.maximum(abs(x), abs(y)) + z * slope > radius * np.hypot(1, slope)
    return (radius == 0) | (~outside & (radius > z))


_PLANE, _MESH = 0, 7  # mjtGeom


def _matrix(quaternion: np.ndarray) -> np.ndarray:
    """f64 [3 3] of a quaternion (x y z w)."""
    x, y, z, w = np.asarray(quaternion, np.float64) / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def _axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """f64 [3] of a quaternion (x y z w), as robosuite's `quat2axisangle` has it: the sign of w is kept."""
    w = float(np.clip(quaternion[3], -1.0, 1.0))
    sine = np.sqrt(1.0 - w * w)
    return np.zeros(3) if sine < 1e-8 else np.asarray(quaternion[:3]) * 2.0 * np.arccos(w) / sine


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Without OpenGL, Python packages fail in many ways when they are imported, or when the first picture is made."""
    logging.getLogger("robosuite_logs").addFilter(_is_news)
    try:
        yield
    except Exception as error:
        way = os.environ["MUJOCO_GL"]
        raise WorldError(
            f"LIBERO cannot be started, or makes no pictures with MUJOCO_GL={way}: {type(error).__name__}: {error}; docs/closed_loop.md "
            "names the system's packages that it needs, and the other values of MUJOCO_GL"
        ) from error


def _is_news(record: logging.LogRecord) -> bool:
    """robosuite warns in every process that nobody has changed its settings."""
    return "macro" not in record.getMessage()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What LIBERO and robosuite print is no output of ours."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
